"""Masks and batches: which batches are divided among masks, and which are refused because prompts would swap masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import maskunet as mu
from maskunet.errors import TargetError
from maskunet.maskers import FixedMasks, Masker, MaskSchedule, MaskTable
from maskunet.targets import describe

Build = Callable[[Any, int], Masker]


def schedule(unet: Any, samples: int) -> Masker:
    return MaskSchedule(describe(unet, "decoder-attention"), [500.0], samples=samples)


def table(unet: Any, samples: int) -> Masker:
    return MaskTable.for_unet(unet, samples=samples, initial_logit=3.0)


def fixed(unet: Any, samples: int) -> Masker:
    layers = describe(unet, "decoder-attention").layers
    shared = {layers[0].name: torch.ones(layers[0].shape)}
    return FixedMasks(shared | {layer.name: torch.ones(samples, *layer.shape) for layer in layers[1:]})


def draw(pipe: Any, count: int, guidance: float, same_noise: bool = False) -> None:
    seeds = [0] * count if same_noise else range(count)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pipe(["a"] * count, num_inference_steps=1, guidance_scale=guidance, generator=generators, output_type="latent")


@pytest.mark.parametrize("build", [schedule, table, fixed])
def test_prompts_are_multiples_of_the_masks(pipe: Any, build: Build) -> None:
    mu.attach(pipe, build(pipe.unet, 2))
    for count, guidance in ((2, 4.0), (4, 4.0), (2, 1.0), (6, 1.0)):
        draw(pipe, count, guidance)
    for count, guidance in ((3, 4.0), (1, 4.0), (3, 1.0)):
        with pytest.raises(TargetError, match=f"multiple of 2 prompts for 2 masks per layer, got {count};"):
            draw(pipe, count, guidance)
    with mu.disabled(pipe):
        draw(pipe, 3, 4.0)
    mu.attach(pipe, build(pipe.unet, 1))
    draw(pipe, 3, 4.0)


def test_one_noise_for_all_is_not_taken_for_guidance(pipe: Any) -> None:
    mu.attach(pipe, schedule(pipe.unet, 2))
    draw(pipe, 2, 1.0, same_noise=True)
    with pytest.raises(TargetError, match="got 3"):
        draw(pipe, 3, 4.0, same_noise=True)


def test_a_unet_without_pipeline(sd1: Any, inputs: Callable[..., dict[str, Any]]) -> None:
    mu.attach(sd1, schedule(sd1, 2))
    given = inputs(sd1, 6)
    sd1(**given)
    given["sample"] = given["sample"][:3].repeat(2, 1, 1, 1)
    with pytest.raises(TargetError, match="got 3"):
        sd1(given.pop("sample"), **given)


def test_masks_of_the_conditional_half(pipe: Any) -> None:
    network = describe(pipe.unet, "decoder-attention")
    mu.attach(pipe, MaskSchedule(network, [500.0], samples=2, guided_half="conditional"))
    draw(pipe, 4, 4.0)
    with pytest.raises(TargetError, match="got 3"):
        draw(pipe, 3, 4.0)


def test_under_a_search(pipe: Any) -> None:
    def mean(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images.mean((1, 2, 3))

    mu.attach(pipe, schedule(pipe.unet, 2))
    config = mu.SearchConfig(num_inference_steps=1, iterations=1)
    assert len(mu.search(pipe, ["a"] * 4, mean, config, seeds=[0] * 4, progress=False).rewards) == 4
    with pytest.raises(TargetError, match="got 3"):
        mu.search(pipe, ["a"] * 3, mean, config, progress=False)
