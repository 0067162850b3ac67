r"""Latents between the autoencoder and the U-Net: one place for their scale, as diffusers' pipelines have it.

The U-Net sees :math:`s z`, or :math:`s (z - \mu) / \sigma` where the autoencoder's config states the statistics of each
channel (Playground 2.5). The pipelines of SD 1.x and 2.x ignore these statistics, so they count for XL alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def has_statistics(vae: Any) -> bool:
    """Return whether an autoencoder's config states the mean and the deviation of each channel.

    Args:
        vae: an autoencoder.
    """
    return all(getattr(vae.config, name, None) is not None for name in ("latents_mean", "latents_std"))


def uses_statistics(pipe: Any) -> bool:
    """Return whether a pipeline scales latents by the statistics of its autoencoder, if that has them.

    Args:
        pipe: a Stable Diffusion pipeline; one of XL does.
    """
    config = getattr(getattr(pipe, "unet", None), "config", None)
    return getattr(config, "addition_embed_type", None) == "text_time"


def scale_latents(vae: Any, z: Tensor, *, statistics: bool = True) -> Tensor:
    """Return an autoencoder's latents as the U-Net sees them, (B, C, h, w).

    Args:
        vae: the autoencoder.
        z: its latents (B, C, h, w).
        statistics: scale by the autoencoder's statistics, if it has them; see `uses_statistics`.
    """
    if not (statistics and has_statistics(vae)):
        return z * vae.config.scaling_factor  # type: ignore[no-any-return]
    centred = z - _channels(vae.config.latents_mean, z)
    return centred * vae.config.scaling_factor / _channels(vae.config.latents_std, z)  # type: ignore[no-any-return]


def scale_deviations(vae: Any, std: Tensor, *, statistics: bool = True) -> Tensor:
    """Return standard deviations of an autoencoder's latents as the U-Net sees them, (B, C, h, w).

    Args:
        vae: the autoencoder.
        std: deviations of its latents (B, C, h, w).
        statistics: as in `scale_latents`.
    """
    scaled = std * vae.config.scaling_factor
    return scaled / _channels(vae.config.latents_std, std) if statistics and has_statistics(vae) else scaled  # type: ignore[no-any-return]


def unscale_latents(vae: Any, latents: Tensor, *, statistics: bool = True) -> Tensor:
    """Return latents as the autoencoder decodes them, (B, C, h, w), computed as the pipelines do, bit for bit.

    Args:
        vae: the autoencoder.
        latents: latents as the U-Net sees them (B, C, h, w).
        statistics: as in `scale_latents`.
    """
    if not (statistics and has_statistics(vae)):
        return latents / vae.config.scaling_factor  # type: ignore[no-any-return]
    spread = latents * _channels(vae.config.latents_std, latents) / vae.config.scaling_factor
    return spread + _channels(vae.config.latents_mean, latents)  # type: ignore[no-any-return]


def _channels(values: Any, like: Tensor) -> Tensor:
    return like.new_tensor(values).view(1, -1, 1, 1)
