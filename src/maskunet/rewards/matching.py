"""A reward of the shapes world that reads the caption beside the picture: how likely the one shows the other.

    r(x, c) = log sigma( l(x, c) )      (B,), at most 0

with the logit l of `zoo.matcher`. Its gradient fades where the network is sure, so there is little to gain from fooling it
further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from .. import zoo
from ..zoo.matcher import Matcher
from .base import Reward
from .clip import read_preprocess
from .files import Source, load_tokenizer
from .preprocess import Preprocess, choose
from .prompts import PromptTokenizer


class MatchingReward(Reward):
    """The log-probability that a picture of the shapes world shows its caption.

    Args:
        name: of the reward.
        model: its matcher, frozen.
        tokenizer: of the prompts; None if only `score_tokens` is used.
        preprocess: from pictures to the network's input.
    """

    def __init__(self, name: str, model: Matcher, tokenizer: Any, preprocess: Preprocess) -> None:
        self.name, self.model, self.preprocess = name, model, preprocess
        self.models = (model,)
        self.tokenize = PromptTokenizer(tokenizer, model.configs["text"].max_position_embeddings, name)

    @classmethod
    def from_pretrained(
        cls,
        source: Source | None = None,
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load it.

        Args:
            source: folder of another matcher; the bundled one if None.
            tokenizer: a tokenizer, or where it is; the model's own if None.
            preprocess: "original" (64 pixels, [-1, 1]), "shared" (the authors' one crop) or one's own.
            dtype: of the network.
            device: where to put it.

        Raises:
            CheckpointError: its weights are missing.
        """
        folder = zoo.path("shapes-matcher") if source is None else source
        model = Matcher.from_pretrained(folder, dtype)
        found = load_tokenizer(CLIPTokenizer, folder if tokenizer is None else tokenizer)
        chosen = choose(preprocess, read_preprocess(folder, model.configs["vision"].image_size))
        return cls("shapes-matching", model, found, chosen).to(device)

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards (B,), on the pictures' device."""
        values = self.preprocess(pictures.to(self.model.device))
        return self.score_tokens(values, *self.tokenize(prompts)).to(pictures.device)

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the rewards (B,), float32, of what preprocessing and tokenizer give.

        Args:
            pixel_values: normalised pictures (B, 3, side, side).
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding.
        """
        device = self.model.device
        seen = self.model.look(pixel_values.to(device, self.model.dtype))
        logits, _ = self.model.read(seen, input_ids.to(device), attention_mask.to(device))
        return F.logsigmoid(logits.float())
