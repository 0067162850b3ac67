"""A search returns the better one of its image and the seed's own, with seeds and masks that give it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.rewards import FunctionReward
from maskunet.sampling import generate
from maskunet.searching import SearchConfig, SearchResult
from tiny_checker import add_checker

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
# Masks that drop most weights, so that every image of the search differs from the base.
CONFIG = SearchConfig(
    num_inference_steps=3,
    guidance_scale=4.0,
    candidates=1,
    iterations=1,
    initial_logit=-2.0,
    keep="last",
    halves="both",
    preview_size=None,
)
OPTIONS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "progress": False}

Rewards = Callable[[Tensor, Sequence[str]], Tensor]


@pytest.fixture
def base(pipe: Any) -> Tensor:
    return generate(pipe, PROMPTS, seeds=SEEDS, **OPTIONS).tensor


@pytest.fixture
def reward(base: Tensor) -> FunctionReward:
    """Distance from the first prompt's base image; closeness to the second's, of which no search finds more."""

    @FunctionReward
    def distance(images: Tensor, prompts: Sequence[str]) -> Tensor:
        signs = torch.tensor([1.0 if prompt == PROMPTS[0] else -1.0 for prompt in prompts])
        bases = torch.stack([base[PROMPTS.index(prompt)] for prompt in prompts])
        return signs * (images - bases).abs().mean((1, 2, 3))

    return distance


@pytest.mark.parametrize("changes", [{}, {"candidates": 3}, {"halves": "conditional"}])
def test_the_better_image_is_returned_and_repeats(
    pipe: Any, base: Tensor, reward: FunctionReward, changes: dict[str, Any], tmp_path: Path
) -> None:
    result = mu.search(pipe, PROMPTS, reward, replace(CONFIG, **changes), seeds=SEEDS, progress=False)
    assert result.base is not None
    assert result.base_rewards is not None
    assert torch.equal(result.base, base)
    assert torch.equal(result.tensor[1], base[1])
    assert float((result.tensor[0] - base[0]).abs().max()) > 0.01
    torch.testing.assert_close(result.rewards, reward(result.tensor, PROMPTS))
    assert bool((result.rewards >= result.base_rewards).all())
    assert float(result.search_rewards[1]) < float(result.rewards[1]) == 0
    assert float(result.search_rewards[0]) == float(result.rewards[0]) > 0
    assert result.start_seeds[1] == SEEDS[1]
    assert result.densities[1] == 1
    assert float(result.densities[0]) < 0.5
    record = result.record(1)
    assert (record["reward"], record["base_reward"], record["density"]) == (0, 0, 1)
    assert record["search_reward"] == float(result.search_rewards[1])
    # Seeds and masks of the result give its images again, together and from the files.
    mu.attach(pipe, result.masks)
    together = generate(pipe, PROMPTS, seeds=result.start_seeds, **OPTIONS).tensor
    torch.testing.assert_close(together, result.tensor, atol=1e-5, rtol=1e-5)
    result.save(tmp_path)
    for i in range(2):
        seed = json.loads((tmp_path / f"0000{i}.json").read_text())["start_seed"]
        mu.attach(pipe, tmp_path / "masks" / f"0000{i}")
        again = generate(pipe, PROMPTS[i : i + 1], seeds=[seed], **OPTIONS).tensor
        torch.testing.assert_close(again, result.tensor[i : i + 1], atol=1e-5, rtol=1e-5)


def test_without_the_base_the_search_alone_is_returned(pipe: Any, reward: FunctionReward) -> None:
    both = mu.search(pipe, PROMPTS, reward, CONFIG, seeds=SEEDS, progress=False)
    alone = mu.search(pipe, PROMPTS, reward, replace(CONFIG, compare_base=False), seeds=SEEDS, progress=False)
    assert torch.equal(alone.search_rewards, both.search_rewards)
    assert torch.equal(alone.rewards, alone.search_rewards)
    assert float(alone.rewards[1]) < float(both.rewards[1])
    assert float(alone.densities.max()) < 0.5
    assert not torch.equal(alone.tensor[1], both.tensor[1])


def test_a_masker_below_the_search_stays_in_the_better_image(pipe: Any, reward: FunctionReward) -> None:
    """The base of a search on top of a masker is the masker's image."""
    mu.attach(pipe, mu.maskers.RandomMasks.for_unet(pipe.unet, density=0.9, seed=0))
    masked = generate(pipe, PROMPTS, seeds=SEEDS, **OPTIONS).tensor

    @FunctionReward
    def closeness(images: Tensor, prompts: Sequence[str]) -> Tensor:
        bases = torch.stack([masked[PROMPTS.index(prompt)] for prompt in prompts])
        return -(images - bases).abs().mean((1, 2, 3))

    result = mu.search(pipe, PROMPTS, closeness, CONFIG, seeds=SEEDS, progress=False)
    torch.testing.assert_close(result.tensor, masked, atol=1e-6, rtol=0)
    assert result.densities.tolist() == [1, 1]


def test_an_image_that_the_safety_checker_passes_beats_a_black_one(pipe: Any, base: Tensor) -> None:
    @FunctionReward
    def darkness(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -images.mean((1, 2, 3))

    config = replace(CONFIG, compare_base=False)
    searched = mu.search(pipe, PROMPTS[:1], darkness, config, seeds=SEEDS[:1], progress=False)
    add_checker(pipe, searched.tensor[0], base[0])
    assert float(mu.search(pipe, PROMPTS[:1], darkness, config, seeds=SEEDS[:1], progress=False).tensor.max()) == 0
    result: SearchResult = mu.search(pipe, PROMPTS[:1], darkness, CONFIG, seeds=SEEDS[:1], progress=False)
    torch.testing.assert_close(result.tensor, base[:1], atol=1e-6, rtol=0)
    assert float(result.search_rewards[0]) == 0 > float(result.rewards[0])
