r"""The diffusion loss in terms of tensors and a scheduler: noised latents, what is predicted, and the weight of a step.

.. math::
    x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon, \qquad
    v_t = \sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} x_0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import DataError


def prediction_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return what the U-Net is trained to predict: the noise, or the velocity.

    Args:
        scheduler: a diffusers scheduler; its `prediction_type` decides.
        latents: clean latents x_0 (B, C, h, w).
        noise: epsilon, of the same shape.
        timesteps: (B,) integers.

    Raises:
        DataError: another prediction type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)  # type: ignore[no-any-return]
    raise DataError(f"expected a scheduler that predicts 'epsilon' or 'v_prediction', got {kind!r}")


def snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Return min-SNR loss weights (B,), min(SNR, gamma) over SNR, or over SNR + 1 for velocity prediction.

    Reference: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023.
    """
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alphas / (1 - alphas)
    if scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # finite where a schedule ends in SNR 0


def diffusion_errors(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    prompt_embeds: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    **conditions: Any,
) -> Tensor:
    """Return the squared prediction error of each sample, (B,), averaged over its latents.

    Args:
        unet: the U-Net, with or without masks.
        scheduler: the noise schedule.
        latents: clean latents (B, C, h, w), scaled.
        prompt_embeds: (B, L, D).
        noise: (B, C, h, w).
        timesteps: (B,) integers.
        conditions: further keyword arguments of the U-Net, as SDXL's `added_cond_kwargs`.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, prompt_embeds, **conditions).sample
    target = prediction_target(scheduler, latents, noise, timesteps)
    return torch.nn.functional.mse_loss(predicted.float(), target.float(), reduction="none").mean((1, 2, 3))
