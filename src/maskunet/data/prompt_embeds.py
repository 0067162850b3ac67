"""Prompt embeddings of captions, from a pipeline's own text encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class PromptEmbeds:
    """Prompt embeddings by caption.

    The empty caption gets the embedding that classifier-free guidance uses for it; SDXL's pipeline may ask for zeros.

    Args:
        pipe: a Stable Diffusion pipeline, 1.x, 2.x or XL.
        captions: captions to encode now and keep, in half precision on the CPU; all others are encoded when they come.
        batch_size: captions per call of the text encoders.
    """

    def __init__(self, pipe: Any, captions: Sequence[str] = (), *, batch_size: int = 64) -> None:
        self.pipe = pipe
        self._cache: dict[str, tuple[Tensor, ...]] = {}
        unique = sorted(set(captions))
        for start in range(0, len(unique), batch_size):
            chunk = unique[start : start + batch_size]
            encoded = [x.half().cpu() for x in self._encode(chunk)]
            self._cache |= {caption: tuple(x[i].clone() for x in encoded) for i, caption in enumerate(chunk)}

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> list[Tensor]:
        # The pipeline warns of every caption that is longer than its text encoder's context.
        pipeline_logger = logging.getLogger(type(self.pipe).__module__)
        level = pipeline_logger.level
        pipeline_logger.setLevel(logging.ERROR)
        try:
            encoded = self.pipe.encode_prompt(
                prompt=captions,
                device=self.pipe.unet.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        finally:
            pipeline_logger.setLevel(level)
        embeds = [x for x in (encoded[0], encoded[2] if len(encoded) > 2 else None) if x is not None]
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            is_text = torch.tensor([bool(caption) for caption in captions], device=embeds[0].device)
            embeds = [torch.where(is_text.view(-1, *[1] * (x.ndim - 1)), x, 0.0) for x in embeds]
        return embeds

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of captions, on the U-Net's device and in its dtype.

        Args:
            captions: B captions.

        Returns:
            Embeddings (B, L, D), and for SDXL pooled ones (B, D'), else None.
        """
        unet = self.pipe.unet
        if all(caption in self._cache for caption in captions):
            cached = [self._cache[caption] for caption in captions]
            embeds = [torch.stack(parts) for parts in zip(*cached, strict=True)]
        else:
            embeds = self._encode(list(captions))
        embeds = [x.to(unet.device, unet.dtype) for x in embeds]
        return embeds[0], embeds[1] if len(embeds) > 1 else None
