"""What sets of pictures are compared by: distances and shares with intervals, and the bundled world's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import zoo
from ..metrics.distances import frechet_distance
from ..metrics.intervals import Estimate, bootstrap, wilson
from ..shapes.drawing import draw
from ..shapes.scenes import held_out_scenes

_RESAMPLES = 100


@torch.no_grad()
def bundled_features(pictures: Tensor) -> Tensor:
    """Return the bundled CLIP's pooled features (N, 128) of pictures (N, 3, 64, 64) in [0, 1]."""
    clip = zoo.load_clip()
    return torch.cat([clip.vision_model(p * 2 - 1).pooler_output for p in pictures.split(250)])


def bundled_reference(count: int) -> Tensor:
    """Return features of `count` correctly drawn pictures of held-out prompts, (count, 128)."""
    return bundled_features(draw(held_out_scenes(count)))


def share_of(flags: Tensor, groups: Sequence[Sequence[int]]) -> Estimate:
    """Return the mean over groups of a share of pictures, resampled by prompt; Wilson's interval where all agree.

    Args:
        flags: verdicts, or their differences in [-1, 1], of S pictures for each of n prompts, (S, n).
        groups: numbers of the prompts of each task.
    """
    found = bootstrap(flags.float().mean(0), [torch.tensor(g) for g in groups])
    if flags.dtype == torch.bool and found.value in (0.0, 1.0):  # nothing to resample
        return wilson(found.value, flags.numel())
    return found


def frechet_gap(first: Tensor, second: Tensor, real: Tensor, seed: int = 0) -> Estimate:
    """Return how much farther from real pictures a set lies than another, made from the same prompts and noise.

    The interval is a bootstrap over pairs of pictures. A Frechet distance of few pictures is too large, and that of
    resampled ones larger; in the difference of two sets of one size most of that cancels, and the interval is put
    around the measured difference by the resamples' spread about their own mean.

    Args:
        first: (N, D) features of the base.
        second: (N, D) features of the other, in the same order.
        real: (M, D) features of real pictures.
        seed: seed of the resampling.
    """
    gap = frechet_distance(second, real) - frechet_distance(first, real)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(_RESAMPLES):
        rows = torch.randint(len(first), (len(first),), generator=generator)
        found.append(frechet_distance(second[rows], real) - frechet_distance(first[rows], real))
    low, high = (torch.tensor(found) - sum(found) / len(found)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(gap, gap + low, gap + high)
