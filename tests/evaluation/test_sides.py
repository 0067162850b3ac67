"""A search as a side: the base's noise, on top of a masker or without it, and what its pictures depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import DataError
from maskunet.evaluation import search_side
from maskunet.evaluation.sides import search_settings
from maskunet.maskers import RandomMasks
from maskunet.rewards import FunctionReward
from maskunet.sampling import pipeline_side
from maskunet.searching import SearchConfig

PROMPTS, SEEDS = ["a b", "c d"], [4, 9]
DRAWING: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0}
CONFIG = SearchConfig(**DRAWING, iterations=2, learning_rate=0.5, initial_logit=1.0)


@FunctionReward
def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


@pytest.mark.parametrize("masks", [False, True])
def test_a_search_starts_from_the_noise_of_the_other_sides(pipe: Any, masks: bool) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.8, seed=0))
    before = attachment_of(pipe)
    plain = pipeline_side(pipe, masks=masks, **DRAWING)(PROMPTS, SEEDS)
    none = search_side(pipe, redness, SearchConfig(**DRAWING, iterations=0), masks=masks)(PROMPTS, SEEDS)
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=1e-5)
    found = search_side(pipe, redness, CONFIG, masks=masks)(PROMPTS, SEEDS)
    assert bool((redness(found, PROMPTS) > redness(plain, PROMPTS)).all())
    assert attachment_of(pipe) is before
    assert before is not None
    assert before.enabled


def test_masks_of_one_half_lie_aside_where_they_are_off(pipe: Any) -> None:
    found = mu.search(pipe, PROMPTS, redness, CONFIG, progress=False)
    mu.attach(pipe, found.masks)
    assert search_side(pipe, redness, CONFIG)(PROMPTS, SEEDS).shape == (2, 3, 16, 16)
    with pytest.raises(DataError, match="conditional half"):
        search_side(pipe, redness, CONFIG, masks=True)(PROMPTS, SEEDS)


def test_settings_are_those_that_pictures_depend_on() -> None:
    settings = search_settings(CONFIG)
    assert (settings["learning_rate"], settings["iterations"]) == (0.5, 2)
    assert search_settings(SearchConfig(seed=3, compare_base=False)) == search_settings(SearchConfig())
    assert search_settings(SearchConfig())["iterations"] == [0, 4, 0]
