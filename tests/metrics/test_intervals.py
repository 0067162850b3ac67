"""Intervals against their textbook values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskunet.metrics.intervals import Estimate, over_prompts, sign_test, student, wilson


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


def test_the_mean_is_over_tasks_and_within_each_over_images() -> None:
    values = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    tasks = ["a", "a", "a", "a", "b", "b"]
    assert over_prompts(values, range(6), tasks).value == pytest.approx((0.75 + 0.0) / 2)
    weights = torch.tensor([3.0, 1.0])
    assert over_prompts(torch.tensor([1.0, 0.0]), "ab", weights=weights).value == pytest.approx(0.75)


def test_repeats_of_a_prompt_are_one_prompt() -> None:
    """A thousand images of ten prompts, which decide the verdict, say as much as ten images."""
    verdicts = torch.tensor([1.0] * 7 + [0.0] * 3)
    repeated = over_prompts(verdicts.repeat(100), list(range(10)) * 100)
    single = over_prompts(verdicts, range(10))
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))
    independent = over_prompts(verdicts.repeat(100), range(1000))
    assert independent.high - independent.low < 0.2 * (single.high - single.low)
    # Nine independent trials: the unbiased variance of ten equally frequent prompts is p (1 - p) / 9.
    expected = wilson(0.7, 9, 2.262157)
    assert (single.low, single.high) == pytest.approx((expected.low, expected.high))


def test_a_difference_of_one_task_is_students_paired_interval() -> None:
    values = torch.tensor([0.5, 0.0, -0.25, 0.25, 0.0, 0.5], dtype=torch.float64)
    expected = student(values)
    for limits in ((-1.0, 1.0), None):
        estimate = over_prompts(values, range(6), limits=limits)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )


def test_where_nothing_varies_the_interval_is_a_bound_on_distinct_prompts() -> None:
    right = over_prompts(torch.ones(60), list(range(20)) * 3)
    assert (right.low, right.high) == pytest.approx((wilson(1.0, 20).low, 1.0))
    same = over_prompts(torch.zeros(60), list(range(20)) * 3, limits=(-1.0, 1.0))
    half = 1.959964 * math.sqrt(2) / 22  # Bonett and Price
    assert (same.value, same.low, same.high) == pytest.approx((0.0, -half, half))
    mended = over_prompts(torch.ones(4), range(4), limits=(-1.0, 1.0))
    assert mended.value == mended.high == 1
    assert mended.low < 0.5
    without_scale = over_prompts(torch.zeros(5), range(5), limits=None)
    assert math.isnan(without_scale.low)
    assert math.isnan(without_scale.high)
    # The mean of a task of four prompts and one of ninety knows little more than four: 2² / (1/4 + 1/90).
    tasks = ["few"] * 4 + ["many"] * 90
    assert over_prompts(torch.ones(94), range(94), tasks).low == pytest.approx(wilson(1.0, 4 / (1 / 4 + 1 / 90)).low)


def test_a_task_of_one_prompt_has_the_variance_of_the_means() -> None:
    estimate = over_prompts(torch.tensor([1.0, 0.0, 0.0, 1.0]), range(4), range(4))
    assert estimate.value == 0.5
    assert estimate.low < 0.15
    assert estimate.high > 0.85


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_bounds_stay_inside_the_limits_and_have_width(values: list[int], prompts: int, tasks: int) -> None:
    keys = [i % prompts for i in range(len(values))]
    task = [k % tasks for k in keys]
    for tensor, limits in ((torch.tensor(values).abs(), (0.0, 1.0)), (torch.tensor(values), (-1.0, 1.0))):
        estimate = over_prompts(tensor, keys, task, limits=limits)
        assert limits[0] <= estimate.low <= estimate.value + 1e-9
        assert estimate.value - 1e-9 <= estimate.high <= limits[1]
        assert estimate.low < estimate.high


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("share", [0.9, 0.97])
@pytest.mark.parametrize("count", [10, 30, 100])
def test_coverage_of_shares_close_to_one(count: int, share: float, images: int) -> None:
    """Percentiles of resampled prompts cover 0.25 to 0.95 of the time at these sizes."""
    generator = torch.Generator().manual_seed(count)
    keys = list(range(count)) * images
    rates = torch.full((count,), share).expand(images, count)
    covered = 0
    for _ in range(200):
        estimate = over_prompts(torch.bernoulli(rates, generator=generator).flatten(), keys)
        covered += estimate.low <= share <= estimate.high
    assert covered >= 0.9 * 200


@pytest.mark.parametrize("count", [10, 30, 100])
@pytest.mark.parametrize(("mended", "spoilt"), [(0.07, 0.01), (0.2, 0.05)])
def test_coverage_of_paired_differences(count: int, mended: float, spoilt: float) -> None:
    generator = torch.Generator().manual_seed(count)
    covered = 0
    for _ in range(200):
        draws = torch.rand(count, generator=generator)
        values = (draws < mended).float() - (draws > 1 - spoilt).float()
        estimate = over_prompts(values, range(count), limits=(-1.0, 1.0))
        covered += estimate.low <= mended - spoilt <= estimate.high
    assert covered >= 0.9 * 200


def test_coverage_over_tasks_with_few_and_many_prompts() -> None:
    """The six tasks of the shapes world have 4 to 89 distinct prompts, which differ in how hard they are."""
    generator = torch.Generator().manual_seed(0)
    tasks = {"a": (8, 0.96), "b": (16, 0.75), "c": (4, 0.6), "d": (8, 0.98), "e": (49, 0.22), "f": (89, 0.63)}
    keys = [(task, i) for task, (count, _) in tasks.items() for i in range(count)]
    truth = torch.tensor([share for count, share in tasks.values() for _ in range(count)])
    expected = sum(share for _, share in tasks.values()) / 6
    covered = 0
    for _ in range(150):
        easy = torch.bernoulli(truth, generator=generator)  # a third of a prompt's images depends on the prompt alone
        noise = torch.bernoulli(truth.expand(12, -1), generator=generator)
        depends = torch.rand(noise.shape, generator=generator) < 1 / 3
        values = torch.where(depends, easy, noise)
        estimate = over_prompts(values.flatten(), keys * 12, [task for task, _ in keys] * 12)
        covered += estimate.low <= expected <= estimate.high
    assert covered >= 0.9 * 150


def test_the_sign_test_is_exact() -> None:
    first = torch.tensor([0.0] * 12 + [1.0] + [1.0] * 20)
    second = torch.tensor([1.0] * 12 + [0.0] + [1.0] * 20)
    changes = sign_test(first, second)
    assert (changes.mended, changes.spoilt) == (12, 1)
    assert changes.p == pytest.approx(2 * (1 + 13) / 2**13)
    assert str(changes) == "12, 1 (p = 0.003)"
    assert sign_test(first, first).p == 1
    assert str(sign_test(torch.zeros(20), torch.ones(20))) == "20, 0 (p < 0.001)"
