"""Masks as they are made, one layer of one call at a time, so that statistics and bits are kept and no dense masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..attaching.attachment import attachment_of
from ..attaching.trace import Trace
from .context import Subject

#: Called with the number of the call, the layer's name and what it switches off, boolean (M, weights).
See = Callable[[int, str, Tensor], None]


class _Stream(Trace):
    """A record that hands on what it is given and keeps nothing."""

    def __init__(self, see: See) -> None:
        super().__init__("density")
        self._see, self._number = see, -1

    def begin(self, timestep: Any) -> None:
        """Count a call."""
        self._number += 1

    def add(self, layer: str, logits: Tensor | None, mask: Tensor, ndim: int) -> None:
        """Hand on what a layer's mask switches off."""
        mask = mask.detach()
        off = (mask if mask.ndim > ndim else mask[None]) == 0
        self._see(self._number, layer, off.flatten(1).cpu())


@contextlib.contextmanager
def watching(pipe: Any, see: See) -> Iterator[None]:
    """Hand on the masks of each layer and call of the U-Net inside the context.

    Args:
        pipe: a pipeline with a masker attached.
        see: called with the number of the call, from 0; the layer's name; and what is switched off, boolean
            (M, weights), on the CPU.
    """
    attachment = attachment_of(pipe)
    assert attachment is not None
    before, attachment.trace = attachment.trace, _Stream(see)
    try:
        yield
    finally:
        attachment.trace = before


def sets_of_samples(off: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Return the sets of masks of a batch's prompts and which one each prompt has.

    Of a guided batch, whose masks are its two halves', the conditional half counts.

    Args:
        off: what is switched off, (M, weights).
        count: B prompts in the batch.

    Returns:
        Sets (min(M, B), weights) and B numbers of sets.
    """
    sets = off[-count:] if len(off) == 2 * count else off
    return sets, [i % len(sets) for i in range(count)]


@torch.no_grad()
def stream_masks(subject: Subject, see: Callable[[list[int], int, str, Tensor], None]) -> list[float]:
    """Draw the subject's pictures as far as their latents and look at every mask on the way.

    Args:
        subject: what to draw.
        see: called with the numbers of the pictures, the number of the call, the layer and (M, weights) as in `watching`.

    Returns:
        The timestep of each call.
    """
    timesteps: list[float] = []
    for numbers, sampler in subject.samplers("denoising"):
        timesteps = [float(t) for t in sampler.timesteps]

        def mine(call: int, layer: str, off: Tensor, numbers: list[int] = numbers) -> None:
            see(numbers, call, layer, off)

        with watching(subject.pipe, mine):
            while not sampler.finished:
                sampler.advance(sampler.predict())
    return timesteps
