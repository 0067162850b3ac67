"""A data set as a training step uses it: latents, encoded once, with their captions.

Which samples a step sees, and everything random about them, follows from a seed and a position in the stream of epochs
alone. Neither the number of processes nor an interruption changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..relaxation import derive_seed
from .scaling import scale_deviations, scale_latents


@dataclass(frozen=True)
class CachedLatents:
    """Latents and captions of a data set.

    Args:
        mean: posterior means (N, C, H/8, W/8), scaled for the U-Net.
        std: posterior standard deviations, of the same shape and scale.
        captions: N captions.
        time_ids: (N, 6) original height and width, top and left of the crop, target height and width in pixels, which
            SDXL is conditioned on; None for images that were not resized or cropped.
        source: name of the data set, for the model card.

    Raises:
        DataError: the numbers of means, deviations and captions differ.
    """

    mean: Tensor
    std: Tensor
    captions: tuple[str, ...]
    time_ids: Tensor | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == len(self.captions):
            raise DataError(
                f"expected as many captions as latents, got {len(self.mean)} means, {len(self.std)} deviations and "
                f"{len(self.captions)} captions"
            )

    def __len__(self) -> int:
        return len(self.mean)

    def split(self, count: int) -> tuple[CachedLatents, CachedLatents]:
        """Return the first samples and the remaining ones.

        Args:
            count: size of the first part.
        """

        def part(samples: slice) -> CachedLatents:
            ids = None if self.time_ids is None else self.time_ids[samples]
            return CachedLatents(self.mean[samples], self.std[samples], self.captions[samples], ids, self.source)

        return part(slice(count)), part(slice(count, None))

    def latents(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """Draw latents of some samples from their posteriors.

        Args:
            indices: B sample numbers.
            generators: B random number generators, one per sample.

        Returns:
            Latents (B, C, H/8, W/8), float32.
        """
        mean, std = self.mean[list(indices)].float(), self.std[list(indices)].float()
        noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
        return mean + std * noise


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


@torch.inference_mode()
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
    dtype = vae.dtype
    is_upcast = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if is_upcast:
        vae.to(torch.float32)
    posterior = vae.encode(images.to(vae.device, vae.dtype) * 2 - 1).latent_dist
    if is_upcast:
        vae.to(dtype)
    mean = scale_latents(vae, posterior.mean.float(), statistics=statistics)
    std = scale_deviations(vae, posterior.std.float(), statistics=statistics)
    return mean.half().cpu(), std.half().cpu()
