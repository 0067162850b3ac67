"""Layout of a U-Net's batch: a guided batch holds every prompt twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..maskers import Masker


def check_batch(masker: Masker, latents: Tensor, pipe: Callable[[], Any] | None = None) -> None:
    """Refuse a batch whose prompts cannot be divided among a masker's masks.

    A guided batch has the same latents in both halves.

    Args:
        masker: the attached masker.
        latents: the U-Net's input (rows, C, h, w).
        pipe: returns the pipeline, which may declare its batches unguided.

    Raises:
        TargetError: the number of prompts is no multiple of the number of masks.
    """
    rows = latents.shape[0]
    if masker.guided_half is not None:
        if rows % 2 == 0:  # the masks refuse an odd number themselves
            masker.check_prompt_count(rows // 2)
    elif any(rows % count or (rows % 2 == 0 and rows // 2 % count) for count in masker.mask_counts):
        masker.check_prompt_count(_count_prompts(latents, pipe))


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def _count_prompts(latents: Tensor, pipe: Callable[[], Any] | None) -> int:
    """Number of prompts in a batch. Comparing latents waits for the GPU, so this is called only where it matters."""
    is_guided = None if pipe is None else getattr(pipe(), "do_classifier_free_guidance", None)
    half = latents.shape[0] // 2
    has_equal_halves = len(latents) == 2 * half and torch.equal(latents[:half], latents[half:])
    return half if is_guided is not False and has_equal_halves else len(latents)
