"""Drafts: the search starts from the noise whose coarse image has the highest reward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet import zoo
from maskunet.attaching import attachment_of
from maskunet.errors import TargetError
from maskunet.maskers import MaskTable
from maskunet.rewards import FunctionReward
from maskunet.sampling import generate
from maskunet.sampling.rollout import roll_out
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching import SearchConfig
from maskunet.searching.drafts import best_by_reward, best_drafts, candidate_seeds

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig(num_inference_steps=7, iterations=0, guidance_scale=4.0, candidates=5)
OPTIONS: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 7}


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


REWARD = FunctionReward(redness)


def plain(pipe: Any, seeds: Sequence[int]) -> Tensor:
    return StepwiseSampler(pipe, PROMPTS, seeds=seeds, **OPTIONS).finish()


@torch.no_grad()
def draft_by_hand(pipe: Any, seeds: list[int]) -> Tensor:
    """A fifth of the steps, rounded up, and a roll-out of three calls."""
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=seeds, **OPTIONS)
    for _ in range(-(-len(sampler.timesteps) // 5) - 1):
        sampler.advance(sampler.predict())
    return sampler.decode(roll_out(sampler, sampler.predict(), 3))


@pytest.mark.parametrize(
    "scheduler",
    ["DDIM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete"],
)
def test_the_best_draft_of_each_prompt_is_chosen(pipe: Any, scheduler: str) -> None:
    pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler")()
    rewards = torch.stack([redness(draft_by_hand(pipe, candidate_seeds(SEEDS, j)), PROMPTS) for j in range(5)])
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
    latents = sampler.latents.clone()
    expected = [candidate_seeds(SEEDS, j)[i] for i, j in enumerate(rewards.argmax(0).tolist())]
    assert best_drafts(sampler, REWARD, CONFIG) == expected
    assert sampler.index == 0
    assert torch.equal(sampler.latents, latents)
    assert sampler.seeds == SEEDS


def test_candidate_seeds_start_with_the_prompts_own_and_do_not_depend_on_the_batch() -> None:
    assert candidate_seeds(SEEDS, 0) == SEEDS
    assert candidate_seeds(SEEDS, 3) == [candidate_seeds([seed], 3)[0] for seed in SEEDS]
    assert len({seed for j in range(7) for seed in candidate_seeds(SEEDS, j)}) == 14


@pytest.mark.parametrize("style", ["pipe", "sdxl_pipe"])
def test_a_search_starts_from_the_best_draft_and_compares_with_the_seeds_own_noise(
    style: str, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(style)
    result = mu.search(pipe, PROMPTS, redness, CONFIG, seeds=SEEDS, progress=False)
    assert result.seeds == SEEDS != result.start_seeds
    assert result.record(0)["start_seed"] == result.start_seeds[0]
    torch.testing.assert_close(result.tensor, plain(pipe, result.start_seeds), atol=1e-5, rtol=1e-5)
    assert result.base is not None
    torch.testing.assert_close(result.base, plain(pipe, SEEDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_masker", [False, True])
def test_a_drafted_search_finds_the_masks_of_a_search_from_its_noise(pipe: Any, has_masker: bool) -> None:
    if has_masker:
        mu.attach(pipe, MaskTable.for_unet(pipe.unet, initial_logit=-0.3))
    attachment = attachment_of(pipe)
    config = replace(CONFIG, num_inference_steps=3, iterations=2, initial_logit=1.0, compare_base=False)
    drafted = mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False)
    alone = replace(config, candidates=1)
    again = mu.search(pipe, PROMPTS, redness, alone, seeds=drafted.start_seeds, progress=False)
    assert torch.equal(drafted.tensor, again.tensor)
    for name, bits in drafted.masks.tensors().items():
        assert torch.equal(bits, again.masks.tensors()[name])
    assert attachment_of(pipe) is attachment


def test_the_best_image_of_each_prompt_is_returned_until_the_deadline() -> None:
    calls = []

    def make_images(j: int) -> Tensor:
        calls.append(j)
        return torch.stack([torch.full((3, 2, 2), j / 4), torch.full((3, 2, 2), 1 - j / 4)])

    brightness = FunctionReward(lambda images, prompts: images.mean((1, 2, 3)))
    images, rewards, indices = best_by_reward(make_images, 4, PROMPTS, brightness)
    assert indices.tolist() == [3, 0]
    assert rewards.tolist() == [0.75, 1.0]
    assert images[:, 0, 0, 0].tolist() == [0.75, 1.0]
    calls.clear()
    indices = best_by_reward(make_images, 4, PROMPTS, brightness, deadline=time.monotonic() - 1)[2]
    assert indices.tolist() == [0, 0]
    assert calls == [0]  # the first is always made
    indices = best_by_reward(make_images, 4, PROMPTS, brightness, deadline=time.monotonic() + 60)[2]
    assert indices.tolist() == [3, 0]


def test_wrong_targets_are_reported_before_anything_is_drafted(pipe: Any) -> None:
    calls = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(len(images))
        return redness(images, prompts)

    with pytest.raises(TargetError):
        mu.search(pipe, PROMPTS, reward, replace(CONFIG, targets=["to_nothing"]), seeds=SEEDS, progress=False)
    assert not calls


def test_a_search_without_config_drafts(pipe: Any) -> None:
    result = mu.search(pipe, PROMPTS, redness, seeds=SEEDS, progress=False)
    assert result.config == SearchConfig(guidance_scale=7.5)  # the model's default
    assert all(
        start in {candidate_seeds([seed], j)[0] for j in range(7)}
        for seed, start in zip(SEEDS, result.start_seeds, strict=True)
    )
    assert result.start_seeds != SEEDS


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {"negative_prompt": "two hearts"}),
        ("EulerDiscreteScheduler", {"height": 64, "width": 128}),
        ("DPMSolverMultistepScheduler", {"guidance_rescale": 0.7}),
    ],
)
def test_generation_from_the_start_seed_is_the_searchs_own_image_bit_for_bit(
    name: str, options: dict[str, Any]
) -> None:
    """The image before masks, with the settings in the result's record."""
    pipe = zoo.load()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    config = SearchConfig(num_inference_steps=5, iterations=0, candidates=3, **options)
    result = mu.search(pipe, ["a red circle"], "shapes-matching", config, seeds=[7], progress=False)
    record = result.record(0)
    names = ("num_inference_steps", "guidance_scale", "guidance_rescale", "negative_prompt", "height", "width")
    settings = {key: record["config"][key] for key in names}
    assert settings["guidance_scale"] == 4.0
    again = generate(pipe, ["a red circle"], seeds=record["start_seed"], progress=False, **settings)
    assert torch.equal(again.tensor, result.tensor)
    assert result.base is not None
    base = generate(pipe, ["a red circle"], seeds=record["seed"], progress=False, **settings)
    assert torch.equal(base.tensor, result.base)
