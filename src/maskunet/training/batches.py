"""Batches of a run: which samples a step trains on, with which noise, timesteps and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import CachedLatents, PromptEmbeds, sample_index
from ..relaxation import derive_seed
from .config import TrainConfig


@dataclass
class Batch:
    """One process's share of a step.

    Args:
        latents: clean latents (B, C, H/8, W/8), float32 on the U-Net's device; noise is added before it is cast.
        prompt_embeds: embeddings of the captions (B, L, D), after dropout.
        noise: noise of the latents' shape, float32.
        timesteps: training timesteps (B,), integers.
        conditions: further keyword arguments of the U-Net.
        seeds: B seeds, one per sample, of everything random about it.
        captions: B captions as the data has them, before dropout.
    """

    latents: Tensor
    prompt_embeds: Tensor
    noise: Tensor
    timesteps: Tensor
    conditions: dict[str, Any]
    seeds: tuple[int, ...]
    captions: list[str]


class BatchSampler:
    """Make batches from positions in the stream of epochs.

    Args:
        pipe: a Stable Diffusion pipeline.
        data: latents and captions.
        embeds: prompt embeddings of the captions.
        config: settings of the run.
        num_timesteps: timesteps of the noise schedule.
    """

    def __init__(
        self, pipe: Any, data: CachedLatents, embeds: PromptEmbeds, config: TrainConfig, num_timesteps: int
    ) -> None:
        self.pipe, self.data, self.embeds, self.config, self.num_timesteps = pipe, data, embeds, config, num_timesteps

    def __call__(self, positions: range, *, seed: int, dropout: float) -> Batch:
        """Return the samples at some positions.

        Args:
            positions: B positions, >= 0.
            seed: seed of the stream: the order of its samples, and their noise.
            dropout: probability that a caption is replaced by the empty one, in [0, 1].
        """
        unet = self.pipe.unet
        indices = [sample_index(p, len(self.data), seed) for p in positions]
        seeds = tuple(derive_seed(seed, "sample", p) for p in positions)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        latents = self.data.latents(indices, generators)
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        if self.config.noise_offset:
            shifts = torch.stack([torch.randn((latents.shape[1], 1, 1), generator=g) for g in generators])
            noise = noise + self.config.noise_offset * shifts
        timesteps = torch.cat([torch.randint(self.num_timesteps, (1,), generator=g) for g in generators])
        is_dropped = [float(torch.rand((), generator=g)) < dropout for g in generators]
        captions = [self.data.captions[i] for i in indices]
        embeds, pooled = self.embeds(
            ["" if dropped else caption for dropped, caption in zip(is_dropped, captions, strict=True)]
        )
        conditions: dict[str, Any] = {}
        if pooled is not None:
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": self._time_ids(indices, latents)}
        latents, noise = latents.to(unet.device), noise.to(unet.device)
        return Batch(latents, embeds, noise, timesteps.to(unet.device), conditions, seeds, captions)

    def _time_ids(self, indices: Sequence[int], latents: Tensor) -> Tensor:
        ids = self.data.time_ids
        if ids is None:
            size = [side * self.pipe.vae_scale_factor for side in latents.shape[-2:]]
            ids = torch.tensor([[*size, 0, 0, *size]]).expand(len(self.data), 6)
        return ids[list(indices)].to(self.pipe.unet.device, self.pipe.unet.dtype)
