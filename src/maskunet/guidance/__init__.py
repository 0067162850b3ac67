"""Guidance by attention maps at generation time: SynGen, which binds modifiers to their nouns."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Parsers are named by the command line before anything heavy is imported.
_PUBLIC = {
    "Phrase": "phrases",
    "Phrases": "phrases",
    "shapes_phrases": "phrases",
    "syntax_phrases": "phrases",
    "words": "phrases",
    "syngen": "engine",
    "syngen_maker": "engine",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


if TYPE_CHECKING:
    from .engine import syngen, syngen_maker
    from .phrases import Phrase, Phrases, shapes_phrases, syntax_phrases, words
