"""Prompts as the conditions of a U-Net: text embeddings and, in SDXL, pooled embeddings and sizes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_warned: set[tuple[str, int]] = set()  # truncated prompts that were reported, with the token limit


def encode_prompts(
    pipe: Any,
    prompts: Sequence[str],
    *,
    negative_prompt: str | None,
    is_guided: bool,
    size: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Encode prompts, and warn of each that the text encoder truncates.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL).
        prompts: B captions.
        negative_prompt: prompt to steer away from.
        is_guided: also encode the unconditional half.
        size: height and width of the images in pixels.
        device: where the text encoders run.

    Returns:
        Embeddings (B or 2 B, L, D), unconditional rows first, and further arguments of the U-Net: SDXL's added conditions.
    """
    _warn_if_truncated(pipe, prompts, "prompt")
    if negative_prompt is not None and is_guided:
        _warn_if_truncated(pipe, [negative_prompt], "negative prompt")
    encoded = pipe.encode_prompt(
        list(prompts),
        device=device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=is_guided,
        negative_prompt=None if negative_prompt is None else [negative_prompt] * len(prompts),
    )
    embeds = torch.cat([encoded[1], encoded[0]]) if is_guided else encoded[0]
    if len(encoded) == 2:
        return embeds, {}
    pooled = torch.cat([encoded[3], encoded[2]]) if is_guided else encoded[2]
    encoder = getattr(pipe, "text_encoder_2", None)
    dim = int(encoded[2].shape[-1]) if encoder is None else encoder.config.projection_dim
    ids = pipe._get_add_time_ids(size, (0, 0), size, dtype=embeds.dtype, text_encoder_projection_dim=dim)
    conditions = {"text_embeds": pooled, "time_ids": ids.to(device).repeat(len(embeds), 1)}
    return embeds, {"added_cond_kwargs": conditions}


def _warn_if_truncated(pipe: Any, prompts: Sequence[str], role: str) -> None:
    """Warn of each prompt that is too long, once; the pipelines' own note is easily lost among others."""
    # SDXL's two have the same words and limit; a refiner has the second alone.
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    if tokenizer is None:
        return
    limit = tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        if (prompt, limit) in _warned:
            continue
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            _warned.add((prompt, limit))
            text = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True)
            logger.warning("the %s has %d tokens, the text encoder takes %d; cut off: %r", role, len(ids), limit, text)
