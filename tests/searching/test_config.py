"""Settings of a search: presets, the spread of iterations, and every field checked when it is built."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from maskunet.errors import SettingError
from maskunet.searching import PRESETS, SearchConfig

NAN, INFINITY = float("nan"), float("inf")
#: Bad values of every field.
BAD: dict[str, list[Any]] = {
    "num_inference_steps": [0, 1001, 2.5, True],
    "guidance_scale": [NAN, -1.0, "7.5"],
    "negative_prompt": [3],
    "height": [0, 16.0],
    "width": [7, "16"],
    "seed": [-1, 2**63, 0.5],
    "candidates": [0, None],
    "targets": [[], "", [1], None],
    "halves": ["unconditional", None],
    "preview_size": [0, NAN],
    "iterations": [-1, (), (2, -1), (1.5,), NAN, "4"],
    "learning_rate": [0.0, NAN, INFINITY],
    "initial_logit": [NAN, INFINITY, None],
    "gumbel": [1, None],
    "tau": [0.0, NAN],
    "keep": ["first", None],
    "weight_decay": [-0.1, NAN],
    "patience": [0, 1.5],
    "target_reward": [NAN, "0.5"],
    "time_limit_s": [0.0, NAN, INFINITY],
    "reuse": ["yes"],
    "gradient_checkpointing": [0],
    "compare_base": [None],
    "guidance_rescale": [-0.1, 1.1, NAN, None],
}


def test_a_fresh_config_is_the_default_preset() -> None:
    assert SearchConfig() == SearchConfig.preset("default")
    assert SearchConfig().candidates == 7
    assert {name for name in PRESETS if SearchConfig.preset(name).candidates == 1} == {"masks", "fast", "paper"}


def test_the_paper_preset_has_the_authors_settings() -> None:
    paper = SearchConfig.preset("paper", num_inference_steps=9)
    assert (paper.keep, paper.learning_rate, paper.weight_decay, paper.initial_logit) == ("last", 1e-2, 1e-2, 1.0)
    assert (paper.halves, paper.reuse, paper.preview_size, paper.num_inference_steps) == ("both", False, None, 9)
    assert [paper.iterations_at(i, 15) for i in range(15)] == [1] * 7 + [10] * 8


def test_iterations_are_spread_evenly_over_the_steps() -> None:
    masks = SearchConfig.preset("masks")
    assert [masks.iterations_at(i, 15) for i in range(15)] == [0] * 5 + [4] * 5 + [0] * 5
    assert sum(masks.iterations_at(i, 50) for i in range(50)) == 4 * 17
    assert [SearchConfig(iterations=(2, 1)).iterations_at(i, 3) for i in range(3)] == [2, 2, 1]
    assert [SearchConfig(iterations=3).iterations_at(i, 2) for i in range(2)] == [3, 3]


@pytest.mark.parametrize(("name", "most"), [("default", 2), ("fast", 3), ("masks", 4)])
def test_with_fewer_steps_than_numbers_none_is_skipped(name: str, most: int) -> None:
    config = SearchConfig.preset(name)
    assert [max(config.iterations_at(i, n) for i in range(n)) for n in range(1, 8)] == [most] * 7
    assert [config.iterations_at(i, 3) for i in range(3)] == [0, most, 0]


@pytest.mark.parametrize("name", [field.name for field in fields(SearchConfig)])
def test_bad_values_are_refused_in_one_line(name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(SettingError, match=f"expected {name} to be .*, got") as error:
            SearchConfig(**{name: value})
        assert "\n" not in str(error.value)


def test_unknown_presets_and_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="among default, masks, fast, paper, got 'best'"):
        SearchConfig.preset("best")
    with pytest.raises(SettingError, match="got 'rollout'"):
        SearchConfig.preset("paper", rollout=3)
