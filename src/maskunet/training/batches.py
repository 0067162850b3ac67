"""Batches of a run: which samples a step sees, with which noise, timesteps and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import CachedLatents, PromptEmbeds, sample_at
from ..relaxation import derive_seed
from .config import TrainConfig


@dataclass
class Batch:
    """One process's share of a step: noisy inputs and what they are predicted from."""

    latents: Tensor
    embeds: Tensor
    noise: Tensor
    timesteps: Tensor
    conditions: dict[str, Any]
    seeds: tuple[int, ...]
    captions: list[str]  # as they are in the data; dropout acts on the embeddings alone


class Sampler:
    """Makes batches from places in the stream of epochs."""

    def __init__(self, pipe: Any, data: CachedLatents, embeds: PromptEmbeds, config: TrainConfig, steps: int) -> None:
        self.pipe, self.data, self.embeds, self.config, self.steps = pipe, data, embeds, config, steps

    def __call__(self, positions: range, *, seed: int, dropout: float) -> Batch:
        """Return the samples at these places of the stream that belongs to `seed`."""
        unet = self.pipe.unet
        indices = [sample_at(p, len(self.data), seed) for p in positions]
        seeds = tuple(derive_seed(seed, "sample", p) for p in positions)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        latents = self.data.latents(indices, generators)
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        if self.config.noise_offset:
            shifts = torch.stack([torch.randn((latents.shape[1], 1, 1), generator=g) for g in generators])
            noise = noise + self.config.noise_offset * shifts
        timesteps = torch.cat([torch.randint(self.steps, (1,), generator=g) for g in generators])
        dropped = [float(torch.rand((), generator=g)) < dropout for g in generators]
        captions = ["" if d else self.data.captions[i] for d, i in zip(dropped, indices, strict=True)]
        embeds, pooled = self.embeds(captions)
        conditions: dict[str, Any] = {}
        if pooled is not None:
            ids = self.data.time_ids
            if ids is None:
                side = [d * self.pipe.vae_scale_factor for d in latents.shape[-2:]]
                ids = torch.tensor([[*side, 0, 0, *side]]).expand(len(self.data), 6)
            chosen = ids[indices].to(unet.device, unet.dtype)
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": chosen}
        latents, noise = latents.to(unet.device, unet.dtype), noise.to(unet.device, unet.dtype)
        return Batch(
            latents,
            embeds,
            noise,
            timesteps.to(unet.device),
            conditions,
            seeds,
            [self.data.captions[i] for i in indices],
        )
