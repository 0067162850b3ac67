"""Aspect-ratio buckets: the sizes that images are cropped to, and an order in which every batch has one size.

As in Novel AI's and kohya's trainers, the sizes have nearly the same area: an image loses less by cropping than in a
square, and a step costs the same in every bucket.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SettingError
from ..relaxation import derive_seed
from .latents import sample_index

#: Sides are multiples of this many latents, 64 pixels with Stable Diffusion's autoencoder.
STEP_LATENTS = 8
#: The longest side over the resolution, and the resolution over the shortest one.
_STRETCH = 2


@lru_cache
def bucket_sizes(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """Return heights and widths of the buckets, in pixels.

    Sides lie between half and twice the resolution; areas are at most its square, and as near to it as the step lets them.

    Args:
        resolution: side of a square of the buckets' area, in pixels.
        step: all sides are multiples of it, in pixels.

    Raises:
        SettingError: the resolution is less than one step.
    """
    if resolution < step:
        raise SettingError(f"expected a resolution of at least {step} with aspect_ratio_buckets, got {resolution}")
    shortest = max(step, math.ceil(resolution / _STRETCH / step) * step)
    sizes = {(resolution // step * step,) * 2}
    for side in range(shortest, resolution * _STRETCH + 1, step):
        other = min(resolution * _STRETCH, resolution**2 // side) // step * step
        if other >= shortest:
            sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes))


def nearest_bucket(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the bucket with the aspect ratio that is nearest to an image's, in proportion.

    Args:
        height: the image's height.
        width: the image's width.
        sizes: heights and widths of the buckets.
    """
    ratio = math.log(height / width)
    # Of two buckets as near, the larger one: 512 x 512 before the 448 x 448 of a square that was rounded down.
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - ratio), 9), -size[0] * size[1], size))


class BucketOrder:
    """The order of samples in a stream of epochs in which every group of positions comes from one bucket.

    A bucket whose size is no multiple of the group's carries its remaining samples over to its next groups, so all samples
    occur equally often in the long run. In one epoch a few occur twice or not at all; with groups of one, each occurs once.

    Args:
        buckets: sample numbers by bucket.
        group_size: G; positions `[k * G, (k + 1) * G)` come from one bucket.
        seed: seed of the order.
    """

    def __init__(self, buckets: Sequence[Tensor], group_size: int, seed: int) -> None:
        self.buckets, self.group_size, self.seed = buckets, group_size, seed
        self.count = sum(len(bucket) for bucket in buckets)
        # A random share of a group is carried into the first epoch, else small buckets would come late.
        self._carried = [derive_seed(seed, "carried", b) % group_size for b in range(len(buckets))]
        self._plan: tuple[int, list[tuple[int, int]]] | None = None

    def __call__(self, position: int) -> int:
        """Return the sample at a position.

        Args:
            position: position in the stream, >= 0.
        """
        group, offset = divmod(position, self.group_size)
        epoch = group * self.group_size // self.count
        while self._groups_before(epoch + 1) <= group:
            epoch += 1
        while self._groups_before(epoch) > group:
            epoch -= 1
        bucket, number = self._epoch_plan(epoch)[group - self._groups_before(epoch)]
        samples = self.buckets[bucket]
        bucket_position = number * self.group_size + offset
        return int(samples[sample_index(bucket_position, len(samples), derive_seed(self.seed, "bucket", bucket))])

    def _bucket_groups(self, bucket: int, epoch: int) -> int:
        """Return how many groups a bucket has had before an epoch."""
        return (epoch * len(self.buckets[bucket]) + self._carried[bucket]) // self.group_size

    def _groups_before(self, epoch: int) -> int:
        return sum(self._bucket_groups(b, epoch) for b in range(len(self.buckets)))

    def _epoch_plan(self, epoch: int) -> list[tuple[int, int]]:
        """Return the groups of an epoch in their order: a bucket, and the number of the group among the bucket's own."""
        if self._plan is None or self._plan[0] != epoch:
            first = [self._bucket_groups(b, epoch) for b in range(len(self.buckets))]
            counts = [self._bucket_groups(b, epoch + 1) - first[b] for b in range(len(self.buckets))]
            buckets = [b for b, count in enumerate(counts) for _ in range(count)]
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "groups", epoch))
            next_numbers = [itertools.count(number) for number in first]
            shuffled = [buckets[i] for i in torch.randperm(len(buckets), generator=generator)]
            self._plan = epoch, [(b, next(next_numbers[b])) for b in shuffled]
        return self._plan[1]
