"""A data set as a training step uses it: cached latents with their captions, and prompt embeddings of those captions.

Pictures are encoded once, before training. Which samples a step sees, and all that is random about them, follows from
a seed and a position in the stream of epochs alone: neither the number of processes nor an interruption changes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..relaxation import derive_seed


@dataclass(frozen=True)
class CachedLatents:
    """Latents and captions of a data set.

    Args:
        mean: posterior means (N, C, h, w), scaled for the U-Net.
        std: posterior standard deviations, of the same shape.
        captions: N captions.
        time_ids: (N, 6) original height and width, top and left of the crop, target height and width in pixels, which
            SDXL is conditioned on; None says that pictures were used whole.
        source: name of the data set, for the model card.
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
        """Return the first `count` samples and the rest."""

        def part(s: slice) -> CachedLatents:
            ids = None if self.time_ids is None else self.time_ids[s]
            return CachedLatents(self.mean[s], self.std[s], self.captions[s], ids, self.source)

        return part(slice(count)), part(slice(count, None))

    def latents(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """Sample latents (B, C, h, w) of the given samples, float32, each with its own generator."""
        mean, std = self.mean[list(indices)].float(), self.std[list(indices)].float()
        noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
        return mean + std * noise


def sample_at(position: int, count: int, seed: int) -> int:
    """Return which of `count` samples stands at a position of the stream of epochs, each epoch in an order of its own.

    Every sample occurs once in positions `[k * count, (k + 1) * count)`.
    """
    epoch, place = divmod(position, count)
    return int(_order(epoch, count, seed)[place])


_orders: dict[tuple[int, int, int], Tensor] = {}


def _order(epoch: int, count: int, seed: int) -> Tensor:
    key = (epoch, count, seed)
    if key not in _orders:
        if len(_orders) > 2:  # a batch spans two epochs at most, unless the set is smaller than a batch
            _orders.clear()
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        _orders[key] = torch.randperm(count, generator=generator)
    return _orders[key]


@torch.inference_mode()
def encode_pictures(vae: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Encode pictures (B, 3, H, W) in [0, 1] to posterior means and deviations, scaled, in float16 on the CPU.

    An autoencoder that asks for it (`force_upcast`, as SDXL's) encodes in float32.
    """
    before = vae.dtype
    upcast = before == torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:
        vae.to(torch.float32)
    posterior = vae.encode(pictures.to(vae.device, vae.dtype) * 2 - 1).latent_dist
    if upcast:
        vae.to(before)
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    mean, std = ((posterior.mean - shift) * scale).float(), (posterior.std * scale).float()
    return mean.half().cpu(), std.half().cpu()


class PromptEmbeds:
    """Prompt embeddings by caption, from the pipeline's own text encoders.

    The empty caption is what classifier-free guidance takes in its place; SDXL's pipeline may ask for zeros.

    Args:
        pipe: a Stable Diffusion pipeline, 1.x, 2.x or XL.
        captions: captions to encode at once and keep, in half precision on the CPU; the others are encoded as they
            come.
        batch_size: captions a call of the text encoders.
    """

    def __init__(self, pipe: Any, captions: Sequence[str] = (), *, batch_size: int = 64) -> None:
        self.pipe = pipe
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        wanted = sorted(set(captions))
        for start in range(0, len(wanted), batch_size):
            chunk = wanted[start : start + batch_size]
            encoded = [x.half().cpu() for x in self._encode(chunk)]
            self._kept |= {c: tuple(x[i].clone() for x in encoded) for i, c in enumerate(chunk)}

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> list[Tensor]:
        # Captions are cut at the text encoder's length; said once an encoding, it would drown everything else.
        notes = logging.getLogger(type(self.pipe).__module__)
        level = notes.level
        notes.setLevel(logging.ERROR)
        try:
            found = self.pipe.encode_prompt(
                prompt=captions,
                device=self.pipe.unet.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        finally:
            notes.setLevel(level)
        parts = [x for x in (found[0], found[2] if len(found) > 2 else None) if x is not None]
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            # What guidance takes for "no caption", and what a caption that is dropped must therefore be.
            given = torch.tensor([bool(c) for c in captions], device=parts[0].device)
            parts = [torch.where(given.view(-1, *[1] * (x.ndim - 1)), x, 0.0) for x in parts]
        return parts

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return embeddings (B, L, D) and, for SDXL, pooled ones (B, D'), on the U-Net's device."""
        unet = self.pipe.unet
        if all(c in self._kept for c in captions):
            found = [torch.stack(parts) for parts in zip(*(self._kept[c] for c in captions), strict=True)]
        else:
            found = self._encode(list(captions))
        found = [x.to(unet.device, unet.dtype) for x in found]
        return found[0], found[1] if len(found) > 1 else None
