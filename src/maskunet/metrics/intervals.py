"""Estimates with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES = 2000
#: 97.5 % point of the normal distribution.
_Z = 1.959964


@dataclass(frozen=True)
class Estimate:
    """An estimate and the bounds of its 95 % interval.

    Args:
        value: the estimate.
        low: lower bound; NaN where there is none.
        high: upper bound; NaN where there is none.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self, ".3f")

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def bootstrap(values: Tensor, groups: Sequence[Tensor], weights: Tensor | None = None) -> Estimate:
    """Return the mean over groups of the mean within each; percentile interval of resampling within groups.

    Args:
        values: one value per prompt, (N,).
        groups: indices of each group's prompts.
        weights: weight of each prompt inside its group, (N,); equal if None.
    """
    w = torch.ones_like(values) if weights is None else weights.to(values)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(_RESAMPLES)
    for index in groups:
        sample = index[torch.randint(len(index), (_RESAMPLES, len(index)), generator=generator)]
        total += (values[sample] * w[sample]).sum(1) / w[sample].sum(1)
    low, high = (total / len(groups)).quantile(torch.tensor([0.025, 0.975])).tolist()
    means = [float((values[i] * w[i]).sum() / w[i].sum()) for i in groups]
    return Estimate(sum(means) / len(means), low, high)


def wilson(share: float, count: int) -> Estimate:
    """Return a share with Wilson's interval.

    Args:
        share: share of successes, in [0, 1].
        count: number of independent trials.
    """
    centre, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Estimate(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def student(values: Tensor) -> Estimate:
    """Return the mean over runs with Student's interval.

    Args:
        values: one value per run, (N,); a single run has no bounds.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    from scipy.stats import t  # slow to import, and most intervals do not need it

    half = float(t.ppf(0.975, len(values) - 1)) * float(values.std()) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)
