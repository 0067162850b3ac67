"""A model and what else says which of its files to read."""

from __future__ import annotations

from typing import Any, Self


class ModelSource(str):
    """A model as the command line names it; its text, which records hold, also names the options that are set.

    Args:
        model: "shapes", a folder, a file or a hub id.
        options: options of `load_pipeline` by name; None leaves one out.
    """

    model: str
    options: dict[str, Any]

    def __new__(cls, model: str, **options: Any) -> Self:
        """Join the model and its options to one text."""
        present = {name: value for name, value in options.items() if value is not None}
        source = super().__new__(cls, ", ".join([model, *(f"{name} {value}" for name, value in present.items())]))
        source.model, source.options = model, present
        return source


def model_name(source: str) -> str:
    """Return the model of a source, without its options.

    Args:
        source: a model, or a `ModelSource`.
    """
    return source.model if isinstance(source, ModelSource) else source
