"""Drafts: the noise that a search starts from is the one whose coarse picture the reward likes best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from benchmarks.studies import rivals
from torch import Tensor

import maskunet as mu
from maskunet.attaching.attachment import attachment_of
from maskunet.errors import DataError, TargetError
from maskunet.maskers import MaskTable
from maskunet.rewards import FunctionReward
from maskunet.sampling.rollout import rolled_out
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching import SearchConfig
from maskunet.searching.drafts import best_drafts, best_of, candidates

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig(num_inference_steps=7, iterations=0, guidance_scale=4.0, candidates=5)
OPTIONS: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 7}


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


REWARD = FunctionReward(redness)


@torch.no_grad()
def drafted(pipe: Any, seeds: list[int]) -> Tensor:
    """A draft by hand: a fifth of the steps, rounded up, and three coarse ones."""
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=seeds, **OPTIONS)
    for _ in range(-(-len(sampler.timesteps) // 5) - 1):
        sampler.advance(sampler.predict())
    return sampler.decode(rolled_out(sampler, sampler.predict(), 3))


@pytest.mark.parametrize(
    "scheduler",
    ["DDIM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete"],
)
def test_the_best_draft_is_chosen_for_each_prompt(pipe: Any, scheduler: str) -> None:
    pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler")()
    rewards = torch.stack([redness(drafted(pipe, candidates(SEEDS, j)), PROMPTS) for j in range(5)])
    which = rewards.argmax(0).tolist()
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
    before = sampler.latents.clone()
    assert best_drafts(sampler, REWARD, CONFIG) == [candidates(SEEDS, j)[i] for i, j in enumerate(which)]
    assert sampler.index == 0
    assert torch.equal(sampler.latents, before)
    assert sampler.seeds == SEEDS


def test_with_two_text_encoders(sdxl_pipe: Any) -> None:
    found = mu.search(sdxl_pipe, PROMPTS, redness, CONFIG, seeds=SEEDS, progress=False)
    starts = found.settings["start_seeds"]
    torch.testing.assert_close(
        found.tensor, rivals.plain(sdxl_pipe, PROMPTS, starts, **OPTIONS), atol=1e-5, rtol=1e-5
    )


def test_a_restarted_sampler_is_a_fresh_one(pipe: Any) -> None:
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    first = StepwiseSampler(pipe, PROMPTS, seeds=[1, 2], **OPTIONS)
    with torch.no_grad():
        first.advance(first.predict())
        again, fresh = first.restarted(SEEDS), StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
        for sampler in (again, fresh):
            while not sampler.finished:
                sampler.advance(sampler.predict())
    assert torch.equal(again.latents, fresh.latents)
    assert (first.index, first.seeds) == (1, [1, 2])


def test_a_search_starts_from_the_chosen_noise_and_compares_with_the_given_one(pipe: Any) -> None:
    found = mu.search(pipe, PROMPTS, redness, CONFIG, seeds=SEEDS, progress=False)
    starts = found.settings["start_seeds"]
    assert found.settings["seeds"] == SEEDS != starts
    assert found.summary(0)["start_seed"] == starts[0]
    torch.testing.assert_close(found.tensor, rivals.plain(pipe, PROMPTS, starts, **OPTIONS), atol=1e-5, rtol=1e-5)
    assert found.base is not None
    torch.testing.assert_close(found.base, rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_masks_of_a_drafted_search_are_those_of_a_search_from_its_noise(pipe: Any, masked: bool) -> None:
    if masked:
        mu.attach(pipe, MaskTable.for_unet(pipe.unet, initial_logit=-0.3))
    below = attachment_of(pipe)
    changes = {"num_inference_steps": 3, "iterations": 2, "initial_logit": 1.0, "compare_base": False}
    drafting = SearchConfig(**{**vars(CONFIG), **changes})
    found = mu.search(pipe, PROMPTS, redness, drafting, seeds=SEEDS, progress=False)
    alone = SearchConfig(**{**vars(drafting), "candidates": 1})
    again = mu.search(pipe, PROMPTS, redness, alone, seeds=found.settings["start_seeds"], progress=False)
    assert torch.equal(found.tensor, again.tensor)
    for name, bits in found.masks.tensors().items():
        assert torch.equal(bits, again.masks.tensors()[name])
    assert attachment_of(pipe) is below


def test_time_ends_the_drafts_after_the_one_that_is_made() -> None:
    made = []

    def make(j: int) -> Tensor:
        made.append(j)
        return torch.full((1, 3, 2, 2), j / 4)

    bright = FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)))
    assert best_of(make, 4, ["a"], bright, deadline=time.monotonic() - 1)[2].tolist() == [0]
    assert made == [0]
    assert best_of(make, 4, ["a"], bright, deadline=time.monotonic() + 60)[2].tolist() == [3]


def test_wrong_targets_are_said_before_anything_is_drafted(pipe: Any) -> None:
    seen = []

    def reward(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(len(pictures))
        return redness(pictures, prompts)

    wrong = SearchConfig(**{**vars(CONFIG), "targets": ["to_nothing"]})
    with pytest.raises(TargetError):
        mu.search(pipe, PROMPTS, reward, wrong, seeds=SEEDS, progress=False)
    assert not seen


def test_the_default_drafts_and_masks_alone_do_not(pipe: Any) -> None:
    assert SearchConfig.preset("masks") == SearchConfig()
    default = SearchConfig.preset("default")
    assert default.candidates > 1
    found = mu.search(pipe, PROMPTS, redness, seeds=SEEDS, progress=False)
    assert found.config == default
    assert found.settings["start_seeds"] != SEEDS


def test_settings_out_of_range() -> None:
    with pytest.raises(DataError, match="expected candidates of at least 1, got 0"):
        SearchConfig(candidates=0)
