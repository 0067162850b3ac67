"""Distances between sets of features, against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from maskunet.errors import DataError
from maskunet.metrics.distances import frechet_distance, gaussian_distance, kernel_distance, precision_recall


def exactly(mean: torch.Tensor, root: torch.Tensor, count: int = 400) -> torch.Tensor:
    """Samples whose mean and covariance are exactly `mean` and `root @ root.T`."""
    x = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ root.T + mean


def test_closed_form_of_diagonal_gaussians() -> None:
    s1, s2 = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    first = exactly(torch.zeros(3).double(), s1.diag())
    second = exactly(torch.tensor([1.0, -2.0, 0.0]).double(), s2.diag())
    expected = 5.0 + float(((s1 - s2) ** 2).sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_same_set_is_at_zero_and_order_does_not_matter() -> None:
    a, b = torch.randn(64, 5), torch.randn(80, 5) * 2 + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


METRICS = [frechet_distance, kernel_distance, gaussian_distance, precision_recall]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
@pytest.mark.parametrize("which", [0, 1])
def test_values_that_are_not_finite_are_refused(metric: Callable[..., Any], value: float, which: int) -> None:
    """NaN crashed the process in the Fréchet distance, and the others returned a number."""
    sets = [torch.randn(8, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)]
    sets[which][3, 2] = value
    name = ("first", "second")[which]
    message = (
        rf"finite features of the {name} set, got NaN, infinite or huge ones for 1 of {8 + which}, first for number 3"
    )
    with pytest.raises(DataError, match=message):
        metric(*sets)


@pytest.mark.parametrize("metric", METRICS)
def test_large_values_are_measured(metric: Callable[..., Any]) -> None:
    sets = torch.randn(8, 5) * 1e18, torch.randn(9, 5) * 1e18
    values = metric(*sets)
    assert all(math.isfinite(value) for value in (values if isinstance(values, tuple) else (values,)))


def test_bad_sets_are_refused() -> None:
    with pytest.raises(DataError, match="one width"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(DataError, match="at least 2 features"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))


def gaussian(count: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return shift + scale * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def test_kernel_distance_is_unbiased_and_grows_with_the_shift() -> None:
    same, spread = kernel_distance(gaussian(1500), gaussian(1500, seed=1), subset_size=300)
    assert abs(same) < 2 * spread
    near, far = (kernel_distance(gaussian(500), gaussian(500, s, seed=1))[0] for s in (0.2, 1.0))
    assert same < near < far
    # If every subset holds all images, it is the textbook sum.
    a, b = gaussian(20).double(), gaussian(20, 0.5, seed=1).double()
    k = [((p @ q.T) / 8 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b))]
    expected = sum((x.sum() - x.trace()) / (20 * 19) for x in k[:2]) - 2 * k[2].mean()
    assert kernel_distance(a, b, subsets=3)[0] == pytest.approx(float(expected), rel=1e-9)


def test_gaussian_distance_is_zero_for_a_set_and_itself_and_forgets_length() -> None:
    a, b = gaussian(200), gaussian(200, 1.0, seed=1)
    assert gaussian_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert gaussian_distance(a, b) > 0
    assert gaussian_distance(5 * a, b) == pytest.approx(gaussian_distance(a, b), rel=1e-6)


def test_precision_falls_with_spread_and_recall_with_narrowness() -> None:
    real = gaussian(600)
    assert precision_recall(real, real) == (1.0, 1.0)
    wide, narrow = gaussian(600, scale=2.5, seed=1), gaussian(600, scale=0.3, seed=1)
    assert precision_recall(wide, real)[0] < 0.3 < 0.9 < precision_recall(narrow, real)[0]
    assert precision_recall(narrow, real)[1] < 0.3
    assert precision_recall(gaussian(50, 50.0), real) == (0.0, 0.0)


@pytest.mark.parametrize("metric", [kernel_distance, gaussian_distance, precision_recall])
def test_sets_that_do_not_fit_are_refused(metric: object) -> None:
    with pytest.raises(DataError, match="one width"):
        metric(torch.zeros(9, 3), torch.zeros(9, 4))  # type: ignore[operator]
