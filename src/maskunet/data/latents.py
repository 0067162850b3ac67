"""A data set as a training step uses it: latents, encoded once, with their captions.

Which samples a step sees, and everything random about them, follows from a seed and a position in the stream of epochs
alone. Neither the number of processes nor an interruption changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..moving import cast, outside_inference_mode
from ..relaxation import derive_seed
from .scaling import scale_deviations, scale_latents


@dataclass(frozen=True)
class CachedLatents:
    """Latents and captions of a data set.

    Args:
        mean: posterior means (N, C, H/8, W/8), scaled for the U-Net; with `sizes`, 1-D: the values sample after sample.
        std: posterior standard deviations, of the same shape and scale.
        captions: N captions.
        time_ids: (N, 6) original height and width, top and left of the crop, target height and width in pixels, which
            SDXL is conditioned on; None for images that were not resized or cropped.
        source: name of the data set, for the model card.
        sizes: (N, 2) heights and widths of the latents, integers, if they differ; None for latents of one size.

    Raises:
        DataError: the numbers of means, deviations, sizes and captions differ.
    """

    mean: Tensor
    std: Tensor
    captions: tuple[str, ...]
    time_ids: Tensor | None = None
    source: str | None = None
    sizes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.sizes is not None:
            area, count = int(self.sizes.prod(1).sum()), len(self.captions)
            if not (len(self.sizes) == count and self.mean.shape == self.std.shape == (self.channels * area,)):
                raise DataError(
                    f"expected {count} sizes for {count} captions and values for their area of {area}, got "
                    f"{len(self.sizes)} sizes, {tuple(self.mean.shape)} means and {tuple(self.std.shape)} deviations"
                )
        elif not len(self.mean) == len(self.std) == len(self.captions):
            raise DataError(
                f"expected as many captions as latents, got {len(self.mean)} means, {len(self.std)} deviations and "
                f"{len(self.captions)} captions"
            )

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def channels(self) -> int:
        """Number of the latents' channels."""
        if self.sizes is None:
            return self.mean.shape[1]
        return len(self.mean) // max(1, int(self.sizes.prod(1).sum()))

    @cached_property
    def _offsets(self) -> list[int]:
        """Where the values of each sample begin, with the end."""
        assert self.sizes is not None
        return [0, *(self.channels * self.sizes.prod(1)).cumsum(0).tolist()]

    @cached_property
    def buckets(self) -> tuple[Tensor, ...]:
        """Sample numbers by size of the latents; one entry if all have one size."""
        if self.sizes is None:
            return (torch.arange(len(self)),)
        _, bucket = self.sizes.unique(dim=0, return_inverse=True)
        return tuple((bucket == b).nonzero().flatten() for b in range(int(bucket.max()) + 1))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of a sample's latents.

        Args:
            index: the sample's number.
        """
        height, width = self.mean.shape[-2:] if self.sizes is None else self.sizes[index].tolist()
        return height, width

    def split(self, count: int) -> tuple[CachedLatents, CachedLatents]:
        """Return the first samples and the remaining ones.

        Args:
            count: size of the first part.
        """

        def part(samples: slice) -> CachedLatents:
            ids, sizes = (None if x is None else x[samples] for x in (self.time_ids, self.sizes))
            values = samples
            if self.sizes is not None:
                start, stop, _ = samples.indices(len(self))
                values = slice(self._offsets[start], self._offsets[stop])
            return CachedLatents(self.mean[values], self.std[values], self.captions[samples], ids, self.source, sizes)

        return part(slice(count)), part(slice(count, None))

    def latents(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """Draw latents of some samples from their posteriors.

        Args:
            indices: B sample numbers, of one size.
            generators: B random number generators, one per sample.

        Returns:
            Latents (B, C, H/8, W/8), float32.

        Raises:
            DataError: the samples differ in size.
        """
        mean, std = self._take(self.mean, indices).float(), self._take(self.std, indices).float()
        noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
        return mean + std * noise

    def _take(self, values: Tensor, indices: Sequence[int]) -> Tensor:
        if self.sizes is None:
            return values[list(indices)]
        sizes = {self.size(i) for i in indices}
        if len(sizes) != 1:
            raise DataError(f"expected samples of one size in a batch, got {sorted(sizes)}")
        shape = (self.channels, *sizes.pop())
        return torch.stack([values[self._offsets[i] : self._offsets[i + 1]].view(shape) for i in indices])

    @staticmethod
    def join(parts: Sequence[CachedLatents], source: str | None = None) -> CachedLatents:
        """Return the samples of several parts as one data set.

        Args:
            parts: the parts, at least one; all with time ids and sizes, or all without.
            source: name of the data set.
        """

        def column(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        captions = tuple(caption for part in parts for caption in part.captions)
        mean, std = torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])
        return CachedLatents(mean, std, captions, column("time_ids"), source, column("sizes"))


def sample_index(position: int, count: int, seed: int) -> int:
    """Return the sample at a position in the stream of epochs; each epoch has its own order.

    Every sample occurs once in positions `[k * count, (k + 1) * count)`.

    Args:
        position: position in the stream, >= 0.
        count: number of samples.
        seed: seed of the orders.
    """
    epoch, offset = divmod(position, count)
    return int(_epoch_order(epoch, count, seed)[offset])


_orders: dict[tuple[int, int, int], Tensor] = {}


def _epoch_order(epoch: int, count: int, seed: int) -> Tensor:
    key = (epoch, count, seed)
    if key not in _orders:
        if len(_orders) > 2:  # a batch spans two epochs at most, unless the set is smaller than a batch
            _orders.clear()
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        _orders[key] = torch.randperm(count, generator=generator)
    return _orders[key]


@outside_inference_mode()
@torch.no_grad()
def encode_posterior(vae: Any, images: Tensor, *, statistics: bool = True) -> tuple[Tensor, Tensor]:
    """Encode images to posterior means and standard deviations, scaled for the U-Net.

    An autoencoder with `force_upcast`, such as SDXL's, encodes in float32.

    Args:
        vae: an `AutoencoderKL`.
        images: (B, 3, H, W) in [0, 1].
        statistics: scale by the autoencoder's statistics, if it has them; see `scaling.uses_statistics`.

    Returns:
        Means and standard deviations (B, C, H/8, W/8), float16, on the CPU.
    """
    is_upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    with cast(vae, torch.float32 if is_upcast else None):
        posterior = vae.encode(images.to(vae.device, vae.dtype) * 2 - 1).latent_dist
    mean = scale_latents(vae, posterior.mean.float(), statistics=statistics)
    std = scale_deviations(vae, posterior.std.float(), statistics=statistics)
    return mean.half().cpu(), std.half().cpu()
