"""The bundled rewards, trained on the shapes world and declared as entry points of this package.

    ShapesReward:    r(x, c) = cos( f(x), g(c) )          (B,), of a small CLIP
    MatchingReward:  r(x, c) = log sigma( l(x, c) )       (B,), at most 0

with the logit l of `zoo.matcher`, which reads the caption beside the image. The gradient of `MatchingReward` fades where the
network is sure, so an optimiser gains little by fooling it further.
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
from ..moving import outside_inference_mode
from ..pretrained import Source, bundled_path, load_tokenizer
from ..rewards.base import Reward
from ..rewards.clip import ClipReward, load_clip, read_preprocess
from ..rewards.preprocess import Preprocess, resolve_preprocess
from ..rewards.prompt_tokenizer import PromptTokenizer
from .matcher import Matcher


class BundledReward(Reward):
    """A reward whose weights come with the package: a network, a tokenizer and a preprocessing.

    Args:
        model: the frozen network.
        tokenizer: tokenizer of the prompts.
        preprocess: maps images to the network's input.
    """

    weights: ClassVar[str]
    """Name of its bundled weights."""

    @abstractmethod
    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None: ...

    @staticmethod
    @abstractmethod
    def _read(folder: Source) -> tuple[Any, int]:
        """Return the frozen network of a folder, and the side of its input in pixels."""

    @classmethod
    @outside_inference_mode()
    def from_pretrained(
        cls,
        source: Source | None = None,
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load it from a folder.

        Args:
            source: folder of other weights; the bundled ones if None.
            tokenizer: a tokenizer, or its folder; the model's own if None.
            preprocess: "original" (64 pixels, [-1, 1]), "shared" (the authors' one crop) or your own `Preprocess`.
            dtype: dtype of the network.
            device: device of the reward.

        Raises:
            CheckpointError: its weights are missing or unreadable.
        """
        folder = bundled_path(cls.weights) if source is None else source
        model, side = cls._read(folder)
        tokenizer = load_tokenizer(CLIPTokenizer, folder if tokenizer is None else tokenizer)
        preprocess = resolve_preprocess(preprocess, read_preprocess(folder, side))
        return cls(model, tokenizer, preprocess).to(device, dtype)


class ShapesReward(BundledReward, ClipReward):
    """How well an image of the shapes world agrees with its caption: a cosine in [-1, 1].

    Args:
        model: the frozen `CLIPModel`.
        tokenizer: tokenizer of the prompts.
        preprocess: maps images to the network's input.
    """

    name = "shapes"
    weights = "shapes-reward"

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        ClipReward.__init__(self, self.name, model, tokenizer, preprocess)

    @staticmethod
    def _read(folder: Source) -> tuple[Any, int]:
        model = load_clip(folder, "shapes")
        return model, model.config.vision_config.image_size


class RefereeReward(ShapesReward):
    """A second reward of the same form, trained separately; nothing is optimised for it, so it can judge what is.

    Args:
        model: the frozen `CLIPModel`.
        tokenizer: tokenizer of the prompts.
        preprocess: maps images to the network's input.
    """

    name = "shapes-referee"
    weights = "shapes-referee"


class MatchingReward(BundledReward):
    """The log-probability that an image of the shapes world shows its caption; at most 0.

    Args:
        model: the frozen matcher.
        tokenizer: tokenizer of the prompts.
        preprocess: maps images to the network's input.
    """

    name = "shapes-matching"
    weights = "shapes-matching"

    def __init__(self, model: Matcher, tokenizer: Any, preprocess: Preprocess) -> None:
        self.model, self.preprocess = model, preprocess
        self.models = (model,)
        self.tokenize = PromptTokenizer(tokenizer, model.configs["text"].max_position_embeddings, self.name)

    @staticmethod
    def _read(folder: Source) -> tuple[Matcher, int]:
        model = Matcher.from_pretrained(folder)
        return model, model.configs["vision"].image_size

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the log-probabilities.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Values (B,), at most 0, on the images' device.
        """
        pixel_values = self.preprocess(images.to(self.model.device))
        return self.score_tokens(pixel_values, *self.tokenize(prompts)).to(images.device)

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the log-probabilities (B,), float32, of preprocessed images and tokenized prompts.

        Args:
            pixel_values: normalised images (B, 3, side, side).
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding.
        """
        device = self.model.device
        states = self.model.encode_images(pixel_values.to(device, self.model.dtype))
        logits, _ = self.model.read_captions(states, input_ids.to(device), attention_mask.to(device))
        return F.logsigmoid(logits.float())


_CLASSES: dict[str, type[BundledReward]] = {cls.name: cls for cls in (ShapesReward, MatchingReward, RefereeReward)}


def bundled_weights(name: str) -> Path:
    """Return the folder of a bundled reward's weights.

    Args:
        name: "shapes", "shapes-matching" or "shapes-referee".

    Raises:
        RewardError: no bundled reward has that name.
    """
    if name not in _CLASSES:
        raise RewardError(f"expected a bundled reward ({', '.join(_CLASSES)}), got {name!r}")
    return bundled_path(_CLASSES[name].weights)
