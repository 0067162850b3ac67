"""Which rows of a U-Net's batch belong to which prompt: a guided batch holds every prompt twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..maskers import Masker


def check_batch(masker: Masker, latents: Tensor, pipe: Callable[[], Any] | None = None) -> None:
    """Refuse a batch whose prompts cannot be shared out among a masker's sets of masks.

    A guided batch is recognised by its latents, which are the same in both halves.

    Args:
        masker: the attached masker.
        latents: the U-Net's input (rows, C, h, w).
        pipe: returns the pipeline, which may know that its batches are not guided.

    Raises:
        TargetError: the number of prompts is no multiple of the sets of masks.
    """
    rows = latents.shape[0]
    if masker.guided_half is not None:
        if rows % 2 == 0:  # the masks themselves refuse an odd number
            masker.check_prompts(rows // 2)
    elif any(rows % sets or (rows % 2 == 0 and rows // 2 % sets) for sets in masker.sample_counts):
        masker.check_prompts(_prompts_in(latents, pipe))


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def _prompts_in(latents: Tensor, pipe: Callable[[], Any] | None) -> int:
    """The number of prompts in a batch; comparing latents waits for a GPU, so it is asked only where it decides."""
    is_guided = None if pipe is None else getattr(pipe(), "do_classifier_free_guidance", None)
    half = latents.shape[0] // 2
    halves_equal = len(latents) == 2 * half and torch.equal(latents[:half], latents[half:])
    return half if is_guided is not False and halves_equal else len(latents)
