"""The tokens of a prompt's phrases, as columns of the attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .phrases import Phrase, word_spans

#: A word's tokens, as columns of the attention maps; several if the tokenizer splits the word.
WordTokens = tuple[int, ...]


@dataclass(frozen=True)
class PhraseTokens:
    """The tokens of a noun and its modifiers.

    Args:
        noun: tokens of the noun.
        modifiers: tokens of each modifier.
    """

    noun: WordTokens
    modifiers: tuple[WordTokens, ...]

    @property
    def words(self) -> tuple[WordTokens, ...]:
        """The noun, then its modifiers."""
        return (self.noun, *self.modifiers)


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of a prompt.

    Args:
        phrases: tokens of its phrases.
        content: all tokens without start token, end token and padding.
    """

    phrases: tuple[PhraseTokens, ...]
    content: WordTokens


def locate_tokens(tokenizer: Any, prompt: str, phrases: Sequence[Phrase]) -> PromptTokens:
    """Return the tokens of a prompt's phrases. Words are matched by position, so repeated words are no problem.

    Args:
        tokenizer: the text encoder's tokenizer, a fast one.
        prompt: the prompt.
        phrases: its nouns and modifiers; words beyond the text encoder's limit are dropped.

    Raises:
        DataError: a slow tokenizer, an index without a word, or phrases that lie beyond the limit.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"expected a fast tokenizer, which returns token offsets, got {type(tokenizer).__name__}")
    limit = tokenizer.model_max_length
    encoded = tokenizer(prompt, truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    content = tuple(i for i, (start, end) in enumerate(offsets) if end > start)
    spans = word_spans(prompt)

    def tokens(word: int) -> WordTokens:
        if not 0 <= word < len(spans):
            raise DataError(f"expected word indices from 0 to {len(spans) - 1}, got {word} for {prompt!r}")
        start, end = spans[word]
        return tuple(i for i in content if offsets[i][0] < end and offsets[i][1] > start)

    located = []
    for noun, modifiers in phrases:
        words = [tokens(modifier) for modifier in dict.fromkeys(modifiers) if modifier != noun]
        phrase = PhraseTokens(tokens(noun), tuple(word for word in words if word))
        if phrase.noun and (phrase.modifiers or not modifiers):
            located.append(phrase)
    if phrases and not located:
        raise DataError(
            f"expected a noun and a modifier among the first {limit} tokens, which the text encoder takes, got none for "
            f"{prompt!r}; shorten the prompt"
        )
    return PromptTokens(tuple(located), content)
