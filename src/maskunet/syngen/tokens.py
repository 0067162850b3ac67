"""From words of a prompt to the tokens whose attention maps stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .phrases import Phrase, words

#: A word's tokens, as columns of the attention maps; several where the tokenizer splits the word.
Word = tuple[int, ...]


@dataclass(frozen=True)
class BoundWords:
    """A noun and its modifiers as tokens."""

    noun: Word
    modifiers: tuple[Word, ...]


@dataclass(frozen=True)
class PromptTokens:
    """What the loss needs to know of a prompt.

    Args:
        bound: nouns with their modifiers.
        content: all tokens of the prompt, without the start token, the end token and padding.
    """

    bound: tuple[BoundWords, ...]
    content: Word


def locate(tokenizer: Any, prompt: str, phrases: Sequence[Phrase]) -> PromptTokens:
    """Find the tokens of phrases. Words are told by their place, so a word that occurs twice is never mistaken.

    Args:
        tokenizer: the text encoder's, a fast one.
        prompt: the prompt.
        phrases: its nouns and modifiers; words that the text encoder's limit cuts off are left out.

    Raises:
        DataError: a word that the prompt does not have, or phrases of which no token is left.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"expected a fast tokenizer, which tells where its tokens are, got {type(tokenizer).__name__}")
    encoded = tokenizer(
        prompt, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True, verbose=False
    )
    spans = encoded["offset_mapping"]
    content = tuple(i for i, (start, end) in enumerate(spans) if end > start)
    places = words(prompt)

    def tokens(number: int) -> Word:
        if not 0 <= number < len(places):
            raise DataError(f"expected numbers of words from 0 to {len(places) - 1}, got {number} for {prompt!r}")
        start, end = places[number]
        return tuple(i for i in content if spans[i][0] < end and spans[i][1] > start)

    bound = []
    for noun, modifiers in phrases:
        found = BoundWords(tokens(noun), tuple(t for m in dict.fromkeys(modifiers) if m != noun and (t := tokens(m))))
        if found.noun and (found.modifiers or not modifiers):
            bound.append(found)
    if phrases and not bound:
        raise DataError(
            f"expected a noun and a modifier among the {tokenizer.model_max_length} tokens that the text encoder takes, "
            f"none is left of {prompt!r}; shorten the prompt"
        )
    return PromptTokens(tuple(bound), content)
