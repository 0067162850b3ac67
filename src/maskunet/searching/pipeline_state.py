"""A pipeline for the time of a search: frozen, and afterwards as it was, whatever happened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..attaching import attachment_of, reattach
from ..errors import DataError
from ..rewards.base import Reward
from ..sampling.freezing import frozen
from ..sampling.offload import upcast_decoder, without_offload
from ..sampling.stepwise import StepwiseSampler
from .config import SearchConfig


@contextlib.contextmanager
def search_mode(pipe: Any, config: SearchConfig, decoder: Any) -> Iterator[None]:
    """Freeze every part, keep U-Net and decoder from being offloaded, switch checkpointing on; undo it afterwards.

    Raises:
        DataError: what is attached cannot lie under a search.
    """
    attached = attachment_of(pipe)
    if attached is not None and attached.enabled and attached.masker.guided_half is not None:
        raise DataError(
            "expected a masker that masks whole batches under a search, one of the conditional half alone is attached; "
            "call maskunet.detach first"
        )
    others = [m for m in (decoder, attached and attached.masker) if isinstance(m, torch.nn.Module)]
    parts = [m for m in (pipe.unet, pipe.vae, decoder) if hasattr(m, "is_gradient_checkpointing")]
    checkpointed = [m for m in parts if config.gradient_checkpointing and not m.is_gradient_checkpointing]
    checkpointed = [m for m in checkpointed if getattr(m, "_supports_gradient_checkpointing", False)]
    with without_offload(pipe.unet, pipe.vae, decoder):
        try:
            with frozen(pipe, *others), upcast_decoder(pipe):
                for part in checkpointed:
                    part.enable_gradient_checkpointing()
                yield
        finally:
            reattach(pipe, attached)
            for part in checkpointed:
                part.disable_gradient_checkpointing()


def uses_float16(sampler: StepwiseSampler, decoder: Any, reward: Reward) -> bool:
    """Whether any network that the gradient goes through is in float16, where gradients underflow."""
    decoder = sampler.pipe.vae if decoder is None else decoder
    networks = (*reward.models, *reward.heads)
    used = {sampler.dtype, decoder.dtype, *(p.dtype for network in networks for p in network.parameters())}
    return torch.float16 in used
