"""The bundled model's reward: the cosine of the small CLIP of the shapes world."""

from __future__ import annotations

from typing import Any, Self

import torch
from transformers import CLIPTokenizer

from .. import zoo
from .clip import ClipReward, load_clip, read_preprocess
from .files import Source, load_tokenizer
from .preprocess import Preprocess, choose


class ShapesReward(ClipReward):
    """How well a picture of the shapes world agrees with its caption."""

    @classmethod
    def from_pretrained(
        cls,
        source: Source | None = None,
        *,
        bundled: str = "shapes-reward",
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load it.

        Args:
            source: folder of another such CLIP; a bundled one if None.
            bundled: which one: "shapes-reward", or "shapes-referee", which was trained apart.
            tokenizer: a tokenizer, or where it is; the model's own if None.
            preprocess: "original" (64 pixels, [-1, 1]), "shared" (the authors' one crop) or one's own.
            dtype: of the network.
            device: where to put it.

        Raises:
            CheckpointError: its weights are missing.
        """
        folder = zoo.path(bundled) if source is None else source
        model = load_clip(folder, "shapes")
        found = load_tokenizer(CLIPTokenizer, folder if tokenizer is None else tokenizer)
        chosen = choose(preprocess, read_preprocess(folder, model.config.vision_config.image_size))
        return cls(bundled.removesuffix("-reward"), model, found, chosen).to(device, dtype)
