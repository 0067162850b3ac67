"""Intervals against their textbook values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskunet.metrics.intervals import Estimate, bootstrap, student, wilson


def test_an_estimate_prints_its_bounds() -> None:
    estimate = Estimate(0.5, 0.4, 0.625)
    assert str(estimate) == "0.500 [0.400, 0.625]"
    assert f"{estimate:.1f}" == "0.5 [0.4, 0.6]"


def test_wilson_of_a_textbook_share() -> None:
    # 8 of 10: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    estimate = wilson(0.8, 10)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_stays_inside_the_unit_interval_and_holds_its_share(count: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, count)) / count
    estimate = wilson(share, count)
    assert 0 <= estimate.low <= share + 1e-12
    assert share - 1e-12 <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_student_of_three_runs_and_of_one() -> None:
    estimate = student(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    half = 4.302653 / math.sqrt(3)  # 97.5 % point of two degrees of freedom; the deviation is 1
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-5)
    single = student(torch.tensor([1.5]))
    assert single.value == 1.5
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_bootstrap_averages_groups_and_repeats() -> None:
    values = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    groups = [torch.arange(4), torch.arange(4, 8)]
    estimate = bootstrap(values, groups)
    assert estimate.value == pytest.approx((0.75 + 0.0) / 2)
    # The second group never varies, so the mean over groups lies between 0 and 1/2.
    assert 0 <= estimate.low < estimate.value < estimate.high <= 0.5
    assert bootstrap(values, groups) == estimate


def test_bootstrap_covers_a_normal_mean_about_as_often_as_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        estimate = bootstrap(torch.randn(60, generator=generator), [torch.arange(60)])
        covered += estimate.low <= 0 <= estimate.high
    assert 88 <= covered <= 99


def test_bootstrap_weights_prompts_inside_their_group() -> None:
    values, weights = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])
    assert bootstrap(values, [torch.arange(2)], weights).value == pytest.approx(0.75)
