"""The Frechet distance against its closed form."""

from __future__ import annotations

import pytest
import torch

import maskunet as mu
from maskunet.metrics.distances import frechet_distance


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


def test_bad_sets_are_refused() -> None:
    with pytest.raises(mu.DataError, match="one width"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(mu.DataError, match="at least two"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
