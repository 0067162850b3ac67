"""Prompts to token ids, with a word about what did not fit."""

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
        tokenizer: a tokenizer of transformers; None where the reward is given token ids.
        limit: longest sequence, in tokens, special ones included; all are padded to it.
        name: of the reward, for messages.
        clean: applied to each prompt first.
    """

    def __init__(self, tokenizer: Any, limit: int, name: str, clean: Callable[[str], str] = str) -> None:
        self.tokenizer, self.limit, self.name, self.clean = tokenizer, limit, name, clean
        self._warned: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask (B, limit) of prompts; warn once about each that is cut.

        Raises:
            RewardError: the reward was made without a tokenizer.
        """
        if self.tokenizer is None:
            raise RewardError(
                f"expected a tokenizer to score prompts with reward {self.name!r}, it was made without; pass tokenizer=, "
                "or call score_tokens"
            )
        texts = [self.clean(prompt) for prompt in prompts]
        found = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.limit, return_tensors="pt"
        )
        full = found["attention_mask"].sum(1) >= self.limit
        for index in full.nonzero().flatten().tolist():
            self._warn_if_cut(texts[index])
        return found["input_ids"], found["attention_mask"]

    def _warn_if_cut(self, text: str) -> None:
        if text in self._warned:
            return
        ids = self.tokenizer(text, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
        kept = self.limit - self.tokenizer.num_special_tokens_to_add()
        if len(ids) <= kept:
            return
        self._warned.add(text)
        logger.warning(
            "reward %r reads at most %d tokens of a prompt, special ones included; of %r it does not see %r",
            self.name,
            self.limit,
            text,
            self._rest(text, ids, kept),
        )

    def _rest(self, text: str, ids: Sequence[int], kept: int) -> str:
        if getattr(self.tokenizer, "is_fast", False):
            options = {"truncation": False, "add_special_tokens": False, "return_offsets_mapping": True}
            start = self.tokenizer(text, verbose=False, **options)["offset_mapping"][kept][0]
            return text[start:].strip()
        return str(self.tokenizer.decode(ids[kept:]))
