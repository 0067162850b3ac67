"""Flags of a command from the fields of a config class: names, types, defaults and help are written once, in the class."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

import typer

from ..errors import SettingError
from ..settings import Settings, check_value

_ARGUMENT = re.compile(r"\s+(\w+(?:, \w+)*): (.*)")
_KINDS = {int: "an integer", float: "a number"}


def docstring_args(config: type[Settings]) -> dict[str, str]:
    """Return the text of each field in the Args of a config's docstring.

    Args:
        config: the config class.
    """
    names = {item.name for item in fields(config)}  # type: ignore[arg-type]
    texts: dict[str, str] = {}
    current: list[str] = []
    indent = 0
    for line in inspect.cleandoc(config.__doc__ or "").splitlines():
        depth = len(line) - len(line.lstrip())
        match = _ARGUMENT.match(line)
        if match and set(match[1].split(", ")) <= names:
            current, indent = match[1].split(", "), depth
            texts |= dict.fromkeys(current, match[2])
        elif current and line.strip() and depth > indent:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in current}
        else:
            current = []
    return texts


def shown(value: Any) -> str:
    """Return a setting as a flag takes it.

    Args:
        value: the setting.
    """
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class ConfigFlags:
    """The flags of one config class.

    Args:
        config: the config class.
        default: the text of a field's default, for the help.
        heading: heading of the flags in the help.
        names: spellings of a field's flag, the canonical one first, where it is not the field's name with dashes.
    """

    def __init__(
        self,
        config: type[Settings],
        default: Callable[[str], str],
        *,
        heading: str,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.config, self.default, self.heading = config, default, heading
        self.names = dict(names or {})
        self.hints = typing.get_type_hints(config)

    def flag(self, name: str) -> str:
        """Return the canonical flag of a field.

        Args:
            name: the field.
        """
        return self.names.get(name, [f"--{name.replace('_', '-')}"])[0]

    def parameters(self) -> list[inspect.Parameter]:
        """Return one parameter per field; None where the flag is absent."""
        texts = docstring_args(self.config)
        return [self._parameter(item.name, texts[item.name]) for item in fields(self.config)]  # type: ignore[arg-type]

    def _parameter(self, name: str, text: str) -> inspect.Parameter:
        hint, declared = self.hints[name], list(self.names.get(name, [self.flag(name)]))
        # Text, and converted here: an optional number may also be "none".
        kind: Any = str | None
        metavar: str | None = {int: "INTEGER", float: "NUMBER"}.get(_scalar(hint), "TEXT")
        if hint is bool:
            kind, metavar = bool | None, None
            if "/" not in declared[0]:
                declared[0] += f"/--no-{declared[0].removeprefix('--')}"
        elif typing.get_origin(hint) is tuple:
            kind = list[str] | None
            text = f"{text.rstrip('.')}; may be repeated."
        help_text = f"{text[:1].upper()}{text[1:]} [default: {self.default(name)}]"
        option = typer.Option(
            *declared, help=help_text, metavar=metavar, show_default=False, rich_help_panel=self.heading
        )
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
        )

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the command line sets, converted and checked.

        Args:
            values: values of the flags by field.

        Raises:
            SettingError: a value is of another type or out of range.
        """
        present = {name: value for name, value in values.items() if value is not None and value != []}
        return {name: self._setting(name, value) for name, value in present.items()}

    def _setting(self, name: str, value: Any) -> Any:
        hint = self.hints[name]
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str):
            value = self._converted(name, hint, value)
        return checked(self.config, name, value, self.flag(name).split("/")[0])

    def _converted(self, name: str, hint: Any, text: str) -> Any:
        members = typing.get_args(hint) or (hint,)
        if type(None) in members and text.lower() == "none":
            return None
        if int in members and Sequence[int] in members:
            values = tuple(self._number(name, int, part) for part in text.split(","))
            return values if "," in text else values[0]
        if Sequence[str] in members:
            return tuple(part.strip() for part in text.split(",")) if "," in text else text
        kind = _scalar(hint)
        return self._number(name, kind, text) if kind in _KINDS else text

    def _number(self, name: str, kind: type, text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise SettingError(f"expected {self.flag(name)} to be {_KINDS[kind]}, got {text!r}") from error


def _scalar(hint: Any) -> Any:
    """Return the type of a field without its None."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if len(members) == 1 else hint


def checked(config: type[Settings], name: str, value: Any, flag: str) -> Any:
    """Return a value that a field can hold; the error names the flag.

    Args:
        config: the config class.
        name: the field.
        value: its value.
        flag: the flag.

    Raises:
        SettingError: the field cannot hold the value.
    """
    try:
        check_value(config, name, value)
    except SettingError as error:
        raise SettingError(str(error).replace(f"expected {name} ", f"expected {flag} ", 1)) from error
    return value


def with_flags(flags: ConfigFlags) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of a config; it receives the settings that were set, by field, as `settings`.

    Args:
        flags: the flags.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in signature.parameters.values()
            if p.name != "settings"
        ] + flags.parameters()

        def run(**values: Any) -> None:
            by_field = {item.name: values.pop(item.name) for item in fields(flags.config)}  # type: ignore[arg-type]
            command(settings=flags.settings(by_field), **values)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__, run.__name__, run.__module__ = command.__doc__, command.__name__, command.__module__
        return run

    return decorate
