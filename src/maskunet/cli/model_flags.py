"""Flags of every command that takes a model: which of its files to read, and a U-Net in the place of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..errors import SettingError
from ..model_files.source import ModelSource
from .options import option

#: Flags of `load_pipeline`'s options.
FLAGS: dict[str, Any] = {
    "unet": option(
        text="U-Net in the place of the model's: a folder, a .safetensors file or a hub id.", default="the model's own"
    ),
    "variant": option(text="Variant of the weights, such as fp16.", default="the plain ones, else the only one"),
    "revision": option(text="Branch, tag or commit of a hub id.", default="main"),
    "config": option(
        text="Pipeline's folder or hub id with the configs for a .safetensors file.",
        default="those of its kind, on the hub",
    ),
}
#: Parameters that name a model, by their command where it is not `model`.
_MODELS = {"info": "source"}


def add_model_flags(app: typer.Typer) -> None:
    """Give all commands of an app that take a model the flags that say which files to read.

    Args:
        app: the app, with its groups.
    """
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = with_model_flags(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_model_flags(group.typer_instance)


def with_model_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the flags; its model comes as a `ModelSource` where one of them is set.

    Args:
        command: the command; without a model, it is returned as it is.
    """
    signature = inspect.signature(command, eval_str=True)
    model = _MODELS.get(command.__name__, "model")
    if model not in signature.parameters:
        return command
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        if parameter.name == model:
            parameters += [
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, flag]
                )
                for name, flag in FLAGS.items()
            ]

    def run(**values: Any) -> None:
        options = {name: value for name in FLAGS if (value := values.pop(name)) is not None}
        if options:
            values[model] = _source(values[model], options)
        command(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__, run.__module__ = command.__doc__, command.__name__, command.__module__
    return run


def _source(model: str | list[str] | None, options: dict[str, str]) -> ModelSource | list[ModelSource]:
    """The model of a command with its options.

    Raises:
        SettingError: there is no model, or there are several.
    """
    flag = f"--{next(iter(options))}"
    if isinstance(model, list):
        if len(model) != 1:
            raise SettingError(f"expected one --model with {flag}, got {len(model)}")
        return [ModelSource(model[0], **options)]
    if model is None:
        raise SettingError(f"expected --model with {flag}, got none")
    return ModelSource(model, **options)
