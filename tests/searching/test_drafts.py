"""Drafts: the noise that a search starts from is the one whose coarse picture the reward likes best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.rewards import FunctionReward
from maskunet.searching import SearchConfig, rivals
from maskunet.searching.drafts import best_drafts, candidates
from maskunet.searching.rollout import rolled_out
from maskunet.searching.sampling import StepwiseSampler

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig(num_inference_steps=4, iterations=0, guidance_scale=4.0, candidates=5, draft_steps=2)
OPTIONS: dict[str, Any] = {"guidance_scale": 4.0}


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


def test_the_best_draft_is_chosen_for_each_prompt(pipe: Any) -> None:
    reward, drafts = FunctionReward(redness), []
    for j in range(5):
        sampler = StepwiseSampler(pipe, PROMPTS, seeds=candidates(SEEDS, j), num_inference_steps=4, **OPTIONS)
        with torch.no_grad():
            sampler.advance(sampler.predict())
            clean = rolled_out(sampler, sampler.predict(), 3)
            drafts.append(redness(sampler.decode(clean), PROMPTS))
    drafts = torch.stack(drafts)
    which = drafts.argmax(0).tolist()
    assert which != [0, 0]  # otherwise nothing was chosen
    chosen = best_drafts(pipe, PROMPTS, SEEDS, reward, CONFIG, num_inference_steps=4, **OPTIONS)
    assert chosen == [candidates(SEEDS, j)[i] for i, j in enumerate(which)]


def test_a_search_starts_from_the_chosen_noise_and_compares_with_the_given_one(pipe: Any) -> None:
    found = mu.search(pipe, PROMPTS, redness, CONFIG, seeds=SEEDS, progress=False)
    starts = found.settings["start_seeds"]
    assert found.settings["seeds"] == SEEDS != starts
    assert found.summary(0)["start_seed"] == starts[0]
    options = {"num_inference_steps": 4, **OPTIONS}
    torch.testing.assert_close(found.pictures, rivals.plain(pipe, PROMPTS, starts, **options), atol=1e-5, rtol=1e-5)
    assert found.base is not None
    torch.testing.assert_close(found.base, rivals.plain(pipe, PROMPTS, SEEDS, **options), atol=1e-5, rtol=1e-5)


def test_masks_of_a_drafted_search_are_those_of_a_search_from_its_noise(pipe: Any) -> None:
    changes = {"iterations": 2, "initial_logit": 1.0, "learning_rate": 0.5, "compare_base": False}
    drafted = SearchConfig(**{**vars(CONFIG), **changes})
    found = mu.search(pipe, PROMPTS, redness, drafted, seeds=SEEDS, progress=False)
    alone = SearchConfig(**{**vars(drafted), "candidates": 1})
    again = mu.search(pipe, PROMPTS, redness, alone, seeds=found.settings["start_seeds"], progress=False)
    assert torch.equal(found.pictures, again.pictures)
    for name, bits in found.masks.tensors().items():
        assert torch.equal(bits, again.masks.tensors()[name])


def test_a_draft_takes_no_more_steps_than_the_picture(pipe: Any) -> None:
    coarse, reward = SearchConfig(**{**vars(CONFIG), "draft_steps": 9}), FunctionReward(redness)
    chosen = best_drafts(pipe, PROMPTS, SEEDS, reward, coarse, num_inference_steps=4, **OPTIONS)
    best = rivals.best_noises(pipe, PROMPTS, SEEDS, reward, count=5, num_inference_steps=4, **OPTIONS)[0]
    assert chosen == best


def test_the_default_drafts_and_masks_alone_do_not(pipe: Any) -> None:
    assert SearchConfig.preset("masks") == SearchConfig()
    default = SearchConfig.preset("default")
    assert default.candidates > 1
    found = mu.search(pipe, PROMPTS, redness, seeds=SEEDS, progress=False)
    assert found.config == default
    assert found.settings["start_seeds"] != SEEDS


@pytest.mark.parametrize("name", ["candidates", "draft_steps"])
def test_settings_out_of_range(name: str) -> None:
    with pytest.raises(mu.DataError, match=f"expected {name} of at least 1, got 0"):
        SearchConfig(**{name: 0}).checked()
