"""The look of every command: option names, aliases and help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from itertools import zip_longest
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

#: Other spellings (those of diffusers' scripts, and of a field with its unit) of a flag, in every command.
ALIASES = {
    "pretrained-model-name-or-path": "model",
    "output-dir": "output",
    "num-inference-steps": "steps",
    "dataset-name": "dataset",
    "train-data-dir": "dataset",
    "time-limit-s": "time-limit",
}
_CONTEXT: dict[str, Any] = {"max_content_width": 100}


def normalise(name: str) -> str:
    """Return the canonical spelling of an option or command: dashes for underscores, no alias.

    Args:
        name: its name without leading dashes.
    """
    name = name.replace("_", "-")
    return ALIASES.get(name, name)


class Command(TyperCommand):
    """A command whose help lists its options under the headings of their `rich_help_panel`; it refuses empty paths."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line.

        Args:
            ctx: the command's context.
            args: the words.
        """
        # An empty path would read as the current folder.
        parameters: list[Any] = list(self.params)
        paths = {name for p in parameters if p.type_descriptor.annotation is Path for name in p.opts}
        for word, value in zip_longest(args, args[1:]):
            flag, sign, rest = word.partition("=")
            name = f"--{normalise(flag.removeprefix('--'))}"
            if name in paths and (rest if sign else value) == "":
                raise typer.BadParameter(
                    f"expected {flag} to be a path, got an empty text; leave it out for the default"
                )
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, one list per heading.

        Args:
            ctx: the command's context.
            formatter: receives the text.
        """
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def new_app(text: str, name: str | None = None, **options: Any) -> typer.Typer:
    """Return an app, or a group of commands, without commands.

    Args:
        text: its help.
        name: its name.
        options: passed to `typer.Typer`.
    """
    return typer.Typer(
        name=name,
        help=text,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_CONTEXT | {"token_normalize_func": normalise},
        **options,
    )


def without_options(command: Callable[..., None], names: Collection[str]) -> Callable[..., None]:
    """Return a command without some of its options, which keep their defaults.

    Args:
        command: the command.
        names: parameters of the options.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.name not in names]

    def run(**values: Any) -> None:
        command(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
