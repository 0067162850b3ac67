"""Guidance by attention maps at generation time: SynGen, which binds modifiers to their nouns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

# Parsers are named by the command line before anything heavy is imported.
_PUBLIC = {
    "Phrase": "phrases",
    "Phrases": "phrases",
    "shapes_phrases": "phrases",
    "syntax_phrases": "phrases",
    "words": "phrases",
    "syngen": "guide",
    "syngen_side": "guide",
}

__all__ = [*_PUBLIC]


__getattr__ = exports(__name__, _PUBLIC)


if TYPE_CHECKING:
    from .guide import syngen, syngen_side
    from .phrases import Phrase, Phrases, shapes_phrases, syntax_phrases, words
