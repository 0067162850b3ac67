"""Batches of a run: which samples a step trains on, with which noise, timesteps and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import BucketOrder, CachedLatents, PromptEmbeds, sample_index
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
        group_size: with latents of several sizes, positions `[k * group_size, (k + 1) * group_size)` have one size.
    """

    def __init__(
        self,
        pipe: Any,
        data: CachedLatents,
        embeds: PromptEmbeds,
        config: TrainConfig,
        num_timesteps: int,
        group_size: int = 1,
    ) -> None:
        self.pipe, self.data, self.embeds, self.config, self.num_timesteps = pipe, data, embeds, config, num_timesteps
        self.group_size = group_size
        self._orders: dict[int, BucketOrder] = {}

    def index(self, position: int, seed: int) -> int:
        """Return the number of the sample at a position.

        Args:
            position: the position, >= 0.
            seed: seed of the stream.
        """
        if self.data.sizes is None:
            return sample_index(position, len(self.data), seed)
        if seed not in self._orders:
            self._orders[seed] = BucketOrder(self.data.buckets, self.group_size, seed)
        return self._orders[seed](position)

    def split_positions(self, positions: range, batch_size: int, seed: int) -> list[list[int]]:
        """Split positions into batches whose latents have one size each.

        Args:
            positions: positions, >= 0.
            batch_size: most positions per batch.
            seed: seed of the stream.
        """
        by_size: dict[tuple[int, int], list[int]] = {}
        for position in positions:
            by_size.setdefault(self.data.size(self.index(position, seed)), []).append(position)
        return [
            group[start : start + batch_size]
            for group in by_size.values()
            for start in range(0, len(group), batch_size)
        ]

    def __call__(self, positions: Sequence[int], *, seed: int, dropout: float) -> Batch:
        """Return the samples at some positions.

        Args:
            positions: B positions, >= 0, of latents of one size.
            seed: seed of the stream: the order of its samples, and their noise.
            dropout: probability that a caption is replaced by the empty one, in [0, 1].
        """
        unet = self.pipe.unet
        indices = [self.index(p, seed) for p in positions]
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
