"""SynGen: guidance by attention maps at generation time, which binds modifiers to their nouns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

# The command line reads parsers before it imports anything heavy.
_PUBLIC = {
    "Phrase": "phrases",
    "PhraseParser": "phrases",
    "shapes_phrases": "phrases",
    "syngen": "guide",
    "syngen_side": "guide",
    "syntax_phrases": "phrases",
}

__all__ = [*_PUBLIC]


__getattr__ = exports(__name__, _PUBLIC)


if TYPE_CHECKING:
    from .guide import syngen, syngen_side
    from .phrases import Phrase, PhraseParser, shapes_phrases, syntax_phrases
