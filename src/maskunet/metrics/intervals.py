"""Estimates with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Changes:
    """Images whose verdict differs between two sides that started from the same noise.

    Args:
        mended: images that are better on the second side.
        spoilt: images that are worse on the second side.
        p: exact two-sided p-value of the sign test, for chances of one half each.
    """

    mended: int
    spoilt: int
    p: float

    def __str__(self) -> str:
        return f"{self.mended}, {self.spoilt} (p {'< 0.001' if self.p < 0.001 else f'= {self.p:.3f}'})"


def sign_test(first: Tensor, second: Tensor) -> Changes:
    """Return how many images are better and worse on the second side, with the exact sign test.

    Args:
        first: one value per image.
        second: the same images' values on the other side, in the same order.
    """
    from scipy.stats import binomtest  # slow to import, and most intervals do not need it

    difference = second.double() - first.double()
    mended, spoilt = int((difference > 0).sum()), int((difference < 0).sum())
    p = float(binomtest(mended, mended + spoilt).pvalue) if mended + spoilt else 1.0
    return Changes(mended, spoilt, p)


def over_prompts(
    values: Tensor,
    prompts: Sequence[Hashable],
    tasks: Sequence[Hashable] | None = None,
    *,
    weights: Tensor | None = None,
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> Estimate:
    """Return the mean over tasks of the mean within each, with an interval over distinct prompts.

    Values of one prompt belong together: the interval comes from the variance between distinct prompts (clusters) within
    tasks. Shares get Wilson's interval with Student's quantile and the number of independent trials that this variance
    amounts to (Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", 1998). Differences get Student's interval. Where nothing varies, the interval is a bound
    on what so few prompts can show: Wilson's, with one trial per prompt, or that of Bonett and Price ("Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data", 2012).

    Args:
        values: one value per image, or the mean of several, (N,).
        prompts: the prompt of each value, (N,); values with equal ones belong together.
        tasks: the task of each value, (N,); one task if None.
        weights: images behind each value, (N,); equal if None.
        limits: (0, 1) for shares, (-1, 1) for differences of shares, None for values without limits, which have no
            bounds (NaN) where nothing varies.
    """
    moments = _clustered(values, prompts, [None] * len(values) if tasks is None else tasks, weights)
    mean, variance, count = moments.mean, moments.variance, moments.count
    varies = variance > 1e-12
    quantile = _student_quantile(moments.freedom) if varies else _Z
    if limits == (0.0, 1.0):
        mean = min(1.0, max(0.0, mean))
        return wilson(mean, mean * (1 - mean) / variance if varies and 0 < mean < 1 else count, quantile)
    if varies:
        centre, half = mean, quantile * math.sqrt(variance)
    elif limits is None:
        return Estimate(mean, math.nan, math.nan)
    else:  # two more prompts, one mended and one spoilt
        centre = mean * count / (count + 2)
        half = _Z * math.sqrt(((count * mean**2 + 2) / (count + 2) - centre**2) / (count + 2))
    low, high = (-math.inf, math.inf) if limits is None else limits
    return Estimate(mean, max(low, centre - half), min(high, centre + half))


@dataclass(frozen=True)
class _Moments:
    """Mean over tasks, its variance between prompts and the variance's degrees of freedom, and the number of prompts.

    The number is that of a single task of equally frequent prompts with the same standard error: tasks have equal weight,
    so those with few prompts count.
    """

    mean: float
    variance: float
    freedom: float
    count: float


def _clustered(
    values: Tensor, prompts: Sequence[Hashable], tasks: Sequence[Hashable], weights: Tensor | None
) -> _Moments:
    v = values.double().cpu()
    w = torch.ones_like(v) if weights is None else weights.to(v)
    numbers: dict[tuple[Hashable, Hashable], int] = {}
    rows = torch.tensor([numbers.setdefault(key, len(numbers)) for key in zip(tasks, prompts, strict=True)])
    sizes = torch.zeros(len(numbers), dtype=v.dtype).index_add_(0, rows, w)
    totals = torch.zeros(len(numbers), dtype=v.dtype).index_add_(0, rows, v * w)
    by_task: dict[Hashable, list[int]] = {}
    for (task, _), number in numbers.items():
        by_task.setdefault(task, []).append(number)
    means, deviations, shares = [], [], []
    for clusters in by_task.values():
        size, total = sizes[clusters], totals[clusters]
        means.append(float(total.sum() / size.sum()))
        shares.append(size / size.sum())
        deviations.append(total / size - means[-1])
    mean, count = sum(means) / len(means), 0.0
    parts, freedoms = [], []
    for task_mean, share, deviation in zip(means, shares, deviations, strict=True):
        n = len(share)
        count += float(share.square().sum())
        # A task with a single prompt has no variance of its own: it deviates from the mean over tasks.
        part = float((share * deviation).square().sum()) * n / (n - 1) if n > 1 else (task_mean - mean) ** 2
        parts.append(part / len(means) ** 2)
        freedoms.append(max(1, n - 1))
    squares = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    freedom = sum(parts) ** 2 / squares if squares > 0 else math.inf  # Welch and Satterthwaite
    return _Moments(mean, sum(parts), freedom, len(means) ** 2 / count)


def _student_quantile(freedom: float) -> float:
    """Return the 97.5 % point of Student's distribution."""
    from scipy.stats import t  # slow to import, and most intervals do not need it

    return float(t.ppf(0.975, freedom))


def wilson(share: float, count: float, quantile: float = _Z) -> Estimate:
    """Return a share with Wilson's interval.

    Args:
        share: share of successes, in [0, 1].
        count: number of independent trials.
        quantile: 97.5 % point of the standardised share; the normal distribution's by default.
    """
    square = quantile**2
    centre, scale = share + square / (2 * count), 1 + square / count
    half = quantile * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return Estimate(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def student(values: Tensor) -> Estimate:
    """Return the mean over independent values, such as training runs, with Student's interval.

    Args:
        values: one value per run, (N,); a single run has no bounds.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = _student_quantile(len(values) - 1) * float(values.std()) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)
