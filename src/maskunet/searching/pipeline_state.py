"""The state of a pipeline while a search runs: frozen, on its device, and afterwards as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..attaching import attachment_of, reattach
from ..errors import DataError
from ..rewards.base import Reward
from ..sampling.freezing import checkpointed, frozen
from ..sampling.offload import upcast_decoder, without_offload
from ..sampling.stepwise import StepwiseSampler
from .config import SearchConfig


@contextlib.contextmanager
def prepared_pipeline(pipe: Any, config: SearchConfig, decoder: Any) -> Iterator[None]:
    """Freeze a pipeline, suspend the offload of U-Net and decoder, and switch checkpointing on; undo it afterwards.

    Args:
        pipe: a Stable Diffusion pipeline.
        config: settings of the search, for `gradient_checkpointing`.
        decoder: decoder of the previews, or None.

    Raises:
        DataError: the attached masker masks only the conditional half, or a network is offloaded by groups of layers.
    """
    attached = attachment_of(pipe)
    if attached is not None and attached.enabled and attached.masker.guided_half is not None:
        raise DataError(
            "expected a masker of whole batches under a search, the attached one masks only the conditional half; call "
            "maskunet.detach first"
        )
    others = [m for m in (decoder, attached and attached.masker) if isinstance(m, torch.nn.Module)]
    networks = [m for m in (pipe.unet, pipe.vae, decoder) if hasattr(m, "is_gradient_checkpointing")]
    networks = [m for m in networks if config.gradient_checkpointing and not m.is_gradient_checkpointing]
    networks = [m for m in networks if getattr(m, "_supports_gradient_checkpointing", False)]
    with without_offload(pipe.unet, pipe.vae, decoder):
        try:
            with frozen(pipe, *others), upcast_decoder(pipe), checkpointed(*networks):
                yield
        finally:
            reattach(pipe, attached)


def needs_gradient_scaling(sampler: StepwiseSampler, decoder: Any, reward: Reward) -> bool:
    """Return whether a network that the gradient flows through computes in float16, where gradients underflow.

    Args:
        sampler: the sampling loop.
        decoder: decoder of the previews; the pipeline's own if None.
        reward: the reward.
    """
    decoder = sampler.pipe.vae if decoder is None else decoder
    networks = (*reward.models, *reward.heads)
    dtypes = {sampler.dtype, decoder.dtype, *(p.dtype for network in networks for p in network.parameters())}
    return torch.float16 in dtypes
