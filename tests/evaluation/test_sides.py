"""A search as a side: the same noise as the other sides, on top of a masker or without it, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import DataError, SettingError
from maskunet.evaluation import search_side
from maskunet.evaluation.published import read_sides
from maskunet.evaluation.sides import build_sides, search_settings
from maskunet.maskers import RandomMasks
from maskunet.rewards import FunctionReward
from maskunet.sampling import pipeline_side
from maskunet.sampling.guidance_scale import replaces_guidance
from maskunet.searching import SearchConfig

PROMPTS, SEEDS = ["a b", "c d"], [4, 9]
GENERATION: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0}
WITHOUT_DRAFTS = GENERATION | {"candidates": 1}
CONFIG = SearchConfig(**WITHOUT_DRAFTS, iterations=2, learning_rate=0.5, initial_logit=1.0)


@FunctionReward
def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.mark.parametrize("masks", [False, True])
def test_a_search_starts_from_the_noise_of_the_other_sides(pipe: Any, masks: bool) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.8, seed=0))
    attachment = attachment_of(pipe)
    plain = pipeline_side(pipe, masks=masks, **GENERATION)(PROMPTS, SEEDS)
    unsearched = search_side(pipe, redness, SearchConfig(**WITHOUT_DRAFTS, iterations=0), masks=masks)(PROMPTS, SEEDS)
    torch.testing.assert_close(unsearched, plain, atol=1e-5, rtol=1e-5)
    searched = search_side(pipe, redness, CONFIG, masks=masks)(PROMPTS, SEEDS)
    assert bool((redness(searched, PROMPTS) > redness(plain, PROMPTS)).all())
    assert attachment_of(pipe) is attachment
    assert attachment is not None
    assert attachment.enabled


def test_masks_of_one_half_are_ignored_without_masks(pipe: Any) -> None:
    result = mu.search(pipe, PROMPTS, redness, CONFIG, progress=False)
    with_nothing_attached = search_side(pipe, redness, CONFIG)(PROMPTS, SEEDS)
    mu.attach(pipe, result.masks)
    torch.testing.assert_close(search_side(pipe, redness, CONFIG)(PROMPTS, SEEDS), with_nothing_attached)
    with pytest.raises(DataError, match="conditional half"):
        search_side(pipe, redness, CONFIG, masks=True)(PROMPTS, SEEDS)


def test_settings_are_those_that_images_depend_on() -> None:
    settings = search_settings(CONFIG)
    assert (settings["learning_rate"], settings["iterations"]) == (0.5, 2)
    assert search_settings(SearchConfig(seed=3)) == search_settings(SearchConfig())
    # With the base image the better of the two is returned.
    assert search_settings(SearchConfig(compare_base=False)) != search_settings(SearchConfig())
    assert search_settings(SearchConfig.preset("masks"))["iterations"] == [0, 4, 0]


def test_names_of_sides() -> None:
    assert read_sides(None, has_masker=False) == ("base",)
    assert read_sides(None, has_masker=True) == ("base", "masker")
    assert read_sides("both, syngen", has_masker=True) == ("base", "masker", "syngen")
    assert read_sides(["search"], has_masker=False) == ("search",)
    for sides in ("best", "base,base", "", []):
        with pytest.raises(SettingError, match="each once"):
            read_sides(sides, has_masker=True)
    with pytest.raises(SettingError, match="expected a masker for the sides search"):
        read_sides("search+masker", has_masker=False)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_all_sides_rescale_guidance_alike(pipe: Any, rescale: float) -> None:
    """Whatever the search's own settings say."""
    config = SearchConfig(**WITHOUT_DRAFTS, iterations=0, guidance_rescale=0.3)
    built = build_sides(
        pipe,
        ["base", "search"],
        **GENERATION | {"guidance_scale": 9.0},
        guidance_rescale=rescale,
        masker=None,
        reward=FunctionReward(redness),
        reward_sources=None,
        search_config=config,
        batch_size=2,
        search_batch_size=2,
        settings={},
    )
    base, searched = (built.sides[name](PROMPTS, SEEDS) for name in ("base", "search"))
    expected = pipeline_side(pipe, **GENERATION | {"guidance_scale": 9.0, "guidance_rescale": rescale})(PROMPTS, SEEDS)
    assert torch.equal(base, expected)
    torch.testing.assert_close(searched, expected, atol=1e-5, rtol=1e-5)
    # Records without it are those of earlier versions.
    for record in (built.settings["base"], built.settings["search"], built.settings["search"]["search"]):
        assert record.get("guidance_rescale", 0.0) == rescale
        assert ("guidance_rescale" in record) == bool(rescale)


def test_masks_that_replace_guidance_have_a_scale_of_their_own(pipe: Any) -> None:
    masker = RandomMasks.for_unet(pipe.unet, density=0.8, seed=0)
    masker.replaced_guidance = 3.0
    mu.attach(pipe, masker)
    assert replaces_guidance(pipe)
    built = build_sides(
        pipe, ["base", "masker"], **GENERATION, masked_guidance_scale=1.0, masker="m", reward=None, reward_sources=None,
        search_config=SearchConfig(), batch_size=2, search_batch_size=1, settings={},
    )  # fmt: skip
    assert [built.settings[name]["guidance_scale"] for name in ("base", "masker")] == [4.0, 1.0]
    for name, scale, masks in (("base", 4.0, False), ("masker", 1.0, True)):
        expected = pipeline_side(pipe, num_inference_steps=3, guidance_scale=scale, masks=masks)(PROMPTS, SEEDS)
        assert torch.equal(built.sides[name](PROMPTS, SEEDS), expected)
