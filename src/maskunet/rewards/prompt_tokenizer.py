"""Prompts to token ids, with a warning about prompts that are too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import RewardError

logger = logging.getLogger(__name__)


class PromptTokenizer:
    """A tokenizer with a reward's own limit.

    Args:
        tokenizer: a tokenizer of transformers; None for a reward that only scores token ids.
        limit: length of all sequences, in tokens, special ones included.
        name: name of the reward, for messages.
        clean: function applied to each prompt first.
    """

    def __init__(self, tokenizer: Any, limit: int, name: str, clean: Callable[[str], str] = str) -> None:
        self.tokenizer, self.limit, self.name, self.clean = tokenizer, limit, name, clean
        self._warned: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids (B, limit) and their attention mask (B, limit); warn once about each prompt that is cut.

        Args:
            prompts: B prompts.

        Raises:
            RewardError: the reward has no tokenizer.
        """
        if self.tokenizer is None:
            raise RewardError(
                f"expected a tokenizer to score prompts with reward {self.name!r}, it has none; pass tokenizer= when you "
                "build it, or call score_tokens"
            )
        texts = [self.clean(prompt) for prompt in prompts]
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.limit, return_tensors="pt"
        )
        is_full = tokens["attention_mask"].sum(1) >= self.limit
        for index in is_full.nonzero().flatten().tolist():
            self._warn_if_cut(texts[index])
        return tokens["input_ids"], tokens["attention_mask"]

    def _warn_if_cut(self, text: str) -> None:
        if text in self._warned:
            return
        ids = self.tokenizer(text, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
        room = self.limit - self.tokenizer.num_special_tokens_to_add()
        if len(ids) <= room:
            return
        self._warned.add(text)
        logger.warning(
            "reward %r reads at most %d tokens of a prompt, special ones included; it ignores the end of %r: %r",
            self.name,
            self.limit,
            text,
            self._cut_text(text, ids, room),
        )

    def _cut_text(self, text: str, ids: Sequence[int], room: int) -> str:
        if getattr(self.tokenizer, "is_fast", False):
            options = {"truncation": False, "add_special_tokens": False, "return_offsets_mapping": True}
            start = self.tokenizer(text, verbose=False, **options)["offset_mapping"][room][0]
            return text[start:].strip()
        return str(self.tokenizer.decode(ids[room:]))
