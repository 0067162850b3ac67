"""Masks while they are computed, one layer of one call at a time, so that no dense masks have to be stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..attaching import attachment_of
from ..attaching.trace import CallRecord, Trace
from .context import AnalysisContext

#: Called with the number of the U-Net call, the layer's name, and the switched-off weights, boolean (M, weights).
OnMask = Callable[[int, str, Tensor], None]


class _Stream(Trace):
    """A trace that passes masks on and stores none."""

    def __init__(self, on_mask: OnMask) -> None:
        super().__init__("density")
        self._on_mask, self._number = on_mask, -1

    def begin(self, timestep: Any) -> CallRecord:
        """Count a call."""
        self._number += 1
        return super().begin(timestep)

    def add(self, call: CallRecord, layer: str, logits: Tensor | None, mask: Tensor, ndim: int) -> None:
        """Pass on the weights that a layer's mask switches off."""
        mask = mask.detach()
        off = (mask if mask.ndim > ndim else mask[None]) == 0
        self._on_mask(self._number, layer, off.flatten(1).cpu())


@contextlib.contextmanager
def watch_masks(pipe: Any, on_mask: OnMask) -> Iterator[None]:
    """Pass on the masks of each layer and call of the U-Net inside the context.

    Args:
        pipe: a pipeline with a masker attached.
        on_mask: called with the number of the call, from 0; the layer's name; and the switched-off weights, boolean
            (M, weights), on the CPU.
    """
    attachment = attachment_of(pipe)
    assert attachment is not None
    previous, attachment.trace = attachment.trace, _Stream(on_mask)
    try:
        yield
    finally:
        attachment.trace = previous


def masks_by_prompt(off: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Return the sets of masks of a batch and the set of each prompt.

    A guided batch has masks for both halves; those of the conditional half count.

    Args:
        off: switched-off weights, (M, weights).
        count: B prompts in the batch.

    Returns:
        Sets (min(M, B), weights), and the number of the set of each of B prompts.
    """
    sets = off[-count:] if len(off) == 2 * count else off
    return sets, [i % len(sets) for i in range(count)]


@torch.no_grad()
def stream_masks(context: AnalysisContext, on_mask: Callable[[list[int], int, str, Tensor], None]) -> list[float]:
    """Denoise the context's images, without decoding them, and pass on every mask.

    Args:
        context: the images.
        on_mask: called with the numbers of the images, then the arguments of `watch_masks`.

    Returns:
        The timestep of each call.
    """
    timesteps: list[float] = []
    for numbers, sampler in context.samplers("denoising"):
        timesteps = [float(t) for t in sampler.timesteps]

        def of_batch(call: int, layer: str, off: Tensor, numbers: list[int] = numbers) -> None:
            on_mask(numbers, call, layer, off)

        with watch_masks(context.pipe, of_batch):
            while not sampler.is_finished:
                sampler.advance(sampler.predict())
    return timesteps
