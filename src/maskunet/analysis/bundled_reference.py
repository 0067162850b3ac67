"""Features of the bundled world, and shares and distances of sets of images with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import zoo
from ..metrics.distances import frechet_distance
from ..metrics.intervals import Estimate, over_prompts
from ..shapes.drawing import draw
from ..shapes.scenes import held_out_scenes

_RESAMPLES = 100


@torch.no_grad()
def bundled_features(images: Tensor) -> Tensor:
    """Return the bundled CLIP's pooled features (N, 128).

    Args:
        images: (N, 3, 64, 64) in [0, 1].
    """
    clip = zoo.load_clip()
    return torch.cat([clip.vision_model(batch * 2 - 1).pooler_output for batch in images.split(250)])


def bundled_images(count: int) -> Tensor:
    """Return correctly drawn images of held-out prompts, (count, 3, 64, 64) in [0, 1].

    Args:
        count: number of images.
    """
    return draw(held_out_scenes(count))


def mean_share(flags: Tensor, prompts: Sequence[str], groups: Sequence[Sequence[int]]) -> Estimate:
    """Return the mean over groups of a share of images, with an interval over distinct prompts.

    Args:
        flags: verdicts, or their differences in [-1, 1], of S images for each of n prompts, (S, n).
        prompts: n prompts; equal ones stay together.
        groups: numbers of the prompts of each task.
    """
    columns = [i for group in groups for i in group]
    tasks = [number for number, group in enumerate(groups) for _ in group]
    limits = (0.0, 1.0) if flags.dtype == torch.bool else (-1.0, 1.0)
    values = flags[:, columns].float().flatten()
    return over_prompts(values, [prompts[i] for i in columns] * len(flags), tasks * len(flags), limits=limits)


def frechet_gap(first: Tensor, second: Tensor, real: Tensor, seed: int = 0) -> Estimate:
    """Return how much farther from real images the second set is than the first, from the same prompts and noise.

    The interval is a bootstrap over pairs of images. The Fréchet distance of a few images is biased upwards, that of
    resampled ones more so. Most of the bias cancels in the difference of two sets of the same size; the interval is the
    measured difference plus the resamples' spread about their own mean.

    Args:
        first: (N, D) features of the base.
        second: (N, D) features of the other set, in the same order.
        real: (M, D) features of real images.
        seed: seed of the resampling.
    """
    gap = frechet_distance(second, real) - frechet_distance(first, real)
    generator = torch.Generator().manual_seed(seed)
    gaps = []
    for _ in range(_RESAMPLES):
        rows = torch.randint(len(first), (len(first),), generator=generator)
        gaps.append(frechet_distance(second[rows], real) - frechet_distance(first[rows], real))
    low, high = (torch.tensor(gaps) - sum(gaps) / len(gaps)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(gap, gap + low, gap + high)
