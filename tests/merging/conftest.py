"""Maskers to merge into tiny networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet import targets
from maskunet.maskers import FixedMasks, Masker, MaskSchedule, MaskTable, RandomMasks


def random_masks(unet: Any, preset: str, samples: int | None = None, seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead = () if samples is None else (samples,)
    layers = targets.describe(unet, preset).layers
    return {x.name: torch.rand((*lead, *x.shape), generator=generator) < 0.7 for x in layers}


def randomised(masker: Masker, scale: float = 0.4) -> Masker:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return masker


def low_rank(unet: Any, preset: str = "decoder-attention-conv", **conditions: bool) -> Masker:
    config = mu.LowRankMaskerConfig(targets=preset, rank=4, **conditions)
    return randomised(mu.LowRankMasker.for_unet(unet, config))


def schedule(unet: Any, timesteps: list[float], samples: int = 1, half: str | None = None) -> MaskSchedule:
    result = MaskSchedule(targets.describe(unet, "decoder-attention-conv"), timesteps, samples, half)
    for i in range(len(timesteps)):
        result.set(i, random_masks(unet, "decoder-attention-conv", samples, seed=i))
    return result


#: Maskers whose masks depend on nothing.
CONSTANT = {
    "low rank": lambda unet: low_rank(unet, use_timestep=False, use_sample=False),
    "fixed": lambda unet: FixedMasks(random_masks(unet, "all")),
    "fixed, a batch of one": lambda unet: FixedMasks(random_masks(unet, "decoder-attention", 1)),
    "table": lambda unet: randomised(MaskTable.for_unet(unet), 1.0),
    "random": lambda unet: RandomMasks.for_unet(unet, density=0.7, every_step=False),
    "schedule of one timestep": lambda unet: schedule(unet, [500.0]),
}


@pytest.fixture(params=list(CONSTANT))
def constant(request: pytest.FixtureRequest, sd1: Any) -> Masker:
    """A masker for the tiny U-Net of SD 1.x whose masks depend on nothing."""
    return CONSTANT[request.param](sd1)


@pytest.fixture
def masker(sd1: Any) -> Masker:
    return low_rank(sd1, use_timestep=False, use_sample=False)
