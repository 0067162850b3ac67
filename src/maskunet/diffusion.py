r"""The diffusion loss in tensors and a scheduler: noisy latents, prediction target, and loss weight by timestep.

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
    """Return the target of the U-Net's prediction: the noise, or the velocity.

    Args:
        scheduler: a diffusers scheduler; its `prediction_type` decides.
        latents: clean latents x_0 (B, C, h, w).
        noise: epsilon (B, C, h, w).
        timesteps: (B,) integers.

    Raises:
        DataError: the scheduler predicts something else.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)  # type: ignore[no-any-return]
    raise DataError(f"expected a scheduler that predicts 'epsilon' or 'v_prediction', got {kind!r}")


def snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Return min-SNR loss weights (B,), min(SNR, gamma) over SNR, or over SNR + 1 for velocity prediction.

    Args:
        scheduler: the noise schedule; its `prediction_type` decides.
        timesteps: (B,) integers.
        gamma: SNR above which the weight falls, > 0; 5 in the paper.

    Reference: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023.
    """
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alphas / (1 - alphas)
    if scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # finite at SNR 0, where some schedules end


def diffusion_errors(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    prompt_embeds: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    **conditions: Any,
) -> Tensor:
    """Return the squared prediction error of each sample, (B,), averaged over its latents' entries.

    Args:
        unet: the U-Net, with or without masks.
        scheduler: the noise schedule.
        latents: clean latents (B, C, h, w), scaled.
        prompt_embeds: embeddings of the prompts (B, L, D).
        noise: epsilon (B, C, h, w).
        timesteps: (B,) integers.
        conditions: further keyword arguments of the U-Net, such as SDXL's `added_cond_kwargs`.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    noise_pred = unet(noisy, timesteps, prompt_embeds, **conditions).sample
    target = prediction_target(scheduler, latents, noise, timesteps)
    return torch.nn.functional.mse_loss(noise_pred.float(), target.float(), reduction="none").mean((1, 2, 3))
