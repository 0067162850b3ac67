"""The bundled model's rewards, trained on the shapes world.

    ShapesReward:    r(x, c) = cos( f(x), g(c) )          (B,), of a small CLIP
    MatchingReward:  r(x, c) = log sigma( l(x, c) )       (B,), at most 0

with the logit l of `zoo.matcher`, which reads the caption beside the picture. The second one's gradient fades where the
network is sure, so there is little to gain from fooling it further.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from ..errors import RewardError
from ..pretrained import Source, bundled_path, load_tokenizer
from ..rewards.base import Reward
from ..rewards.clip import ClipReward, load_clip, read_preprocess
from ..rewards.preprocess import Preprocess, choose
from ..rewards.prompt_tokenizer import PromptTokenizer
from .matcher import Matcher

#: The rewards' names, and where the weights of each are.
BUNDLED = {"shapes": "shapes-reward", "shapes-matching": "shapes-matching", "shapes-referee": "shapes-referee"}


def bundled_weights(name: str) -> Path:
    """Return the folder of a bundled reward's weights.

    Raises:
        RewardError: no bundled reward has that name.
    """
    if name not in BUNDLED:
        raise RewardError(f"expected a bundled reward ({', '.join(BUNDLED)}), got {name!r}")
    return bundled_path(BUNDLED[name])


class BundledReward(Reward):
    """A reward whose weights come with the package: a network on pictures, a tokenizer and a preprocessing."""

    bundled: ClassVar[str]
    """Name of the reward that the class loads by default."""

    @abstractmethod
    def __init__(self, name: str, model: Any, tokenizer: Any, preprocess: Preprocess) -> None: ...

    @staticmethod
    @abstractmethod
    def _read(folder: Source) -> tuple[Any, int]:
        """Return the frozen network of a folder, and the side of its input in pixels."""

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
            source: folder of other weights; bundled ones if None.
            tokenizer: a tokenizer, or where it is; the model's own if None.
            preprocess: "original" (64 pixels, [-1, 1]), "shared" (the authors' one crop) or one's own.
            dtype: of the network.
            device: where to put it.

        Raises:
            CheckpointError: its weights are missing.
        """
        folder = bundled_weights(cls.bundled) if source is None else source
        model, side = cls._read(folder)
        found = load_tokenizer(CLIPTokenizer, folder if tokenizer is None else tokenizer)
        chosen = choose(preprocess, read_preprocess(folder, side))
        return cls(cls.bundled, model, found, chosen).to(device, dtype)


class ShapesReward(BundledReward, ClipReward):
    """How well a picture of the shapes world agrees with its caption: a cosine."""

    bundled = "shapes"

    def __init__(self, name: str, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        ClipReward.__init__(self, name, model, tokenizer, preprocess)

    @staticmethod
    def _read(folder: Source) -> tuple[Any, int]:
        model = load_clip(folder, "shapes")
        return model, model.config.vision_config.image_size


class RefereeReward(ShapesReward):
    """A reward of the same form that was trained separately: nothing is optimised for it, so it can judge those who do."""

    bundled = "shapes-referee"


class MatchingReward(BundledReward):
    """The log-probability that a picture of the shapes world shows its caption; see `from_pretrained`."""

    bundled = "shapes-matching"

    def __init__(self, name: str, model: Matcher, tokenizer: Any, preprocess: Preprocess) -> None:
        self.name, self.model, self.preprocess = name, model, preprocess
        self.models = (model,)
        self.tokenize = PromptTokenizer(tokenizer, model.configs["text"].max_position_embeddings, name)

    @staticmethod
    def _read(folder: Source) -> tuple[Matcher, int]:
        model = Matcher.from_pretrained(folder)
        return model, model.configs["vision"].image_size

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
