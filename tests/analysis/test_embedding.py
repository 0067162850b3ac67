"""Principal axes against a known covariance."""

from __future__ import annotations

import pytest
import torch

from maskunet.analysis.embedding import principal_axes


def test_axes_are_those_of_greatest_variance() -> None:
    points = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0])
    axes, share = principal_axes(points)
    assert axes.abs().argmax(0).tolist() == [1, 3]
    assert axes.gather(0, axes.abs().argmax(0, keepdim=True)).min() > 0.9
    assert share == pytest.approx(97 / 100, abs=0.01)
