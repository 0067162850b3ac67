r"""The diffusion loss in tensors: noise schedule, noisy latents, prediction target, and loss weight by timestep.

.. math::
    x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon, \qquad
    v_t = \sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} x_0

Everything here is computed in float32, whatever the U-Net's dtype: in bfloat16 the first timesteps would have no noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import DataError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class NoiseSchedule:
    r"""The noise schedule that a model was trained with, as its pipeline's scheduler has it.

    It is a copy of the scheduler's own :math:`\bar\alpha_t`, not one that is rebuilt from its config, which lacks what the
    scheduler's class has as a default and what a user set later.

    Args:
        scheduler: a diffusers scheduler.

    Raises:
        DataError: the scheduler has no such schedule (flow matching, EDM, Karras-VE), or predicts something else than
            `PREDICTION_TYPES`.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.prediction_type = str(config.get("prediction_type"))
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(alphas, Tensor) or config.get("use_flow_sigmas") or "flow" in self.prediction_type:
            raise _refuse(scheduler, "a noise schedule (alphas_cumprod)", "has none")
        if self.prediction_type not in PREDICTION_TYPES:
            raise _refuse(scheduler, f"prediction_type {', '.join(PREDICTION_TYPES)}", f"has {self.prediction_type!r}")
        if config.get("timestep_type") == "continuous" and self.prediction_type == "v_prediction":
            raise _refuse(scheduler, "discrete timesteps", "has timestep_type 'continuous'")
        self.alphas_cumprod = alphas.detach().to(torch.float32, copy=True)
        if self.alphas_cumprod.ndim != 1 or not bool(((alphas >= 0) & (alphas <= 1)).all()):
            raise _refuse(scheduler, "alphas_cumprod (T,) in [0, 1]", "has others")

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """Return a scheduler's noise schedule; a schedule is returned as it is.

        Args:
            scheduler: a diffusers scheduler, or a schedule.
        """
        return scheduler if isinstance(scheduler, NoiseSchedule) else cls(scheduler)

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps."""
        return len(self.alphas_cumprod)

    def alphas(self, timesteps: Tensor) -> Tensor:
        r"""Return :math:`\bar\alpha_t`, (B,), float32.

        Args:
            timesteps: (B,) integers.
        """
        self.alphas_cumprod = self.alphas_cumprod.to(timesteps.device)
        return self.alphas_cumprod[timesteps]

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\sqrt{\bar\alpha_t}` and :math:`\sqrt{1 - \bar\alpha_t}`, (B, 1, 1, 1), float32.

        Args:
            timesteps: (B,) integers.
        """
        alphas = self.alphas(timesteps).view(-1, 1, 1, 1)
        return alphas**0.5, (1 - alphas) ** 0.5

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return noisy latents x_t (B, C, h, w), float32.

        Args:
            latents: clean latents x_0 (B, C, h, w).
            noise: epsilon (B, C, h, w).
            timesteps: (B,) integers.
        """
        alpha, sigma = self.scales(timesteps)
        return alpha * latents.float() + sigma * noise.float()


def _refuse(scheduler: Any, expected: str, reason: str) -> DataError:
    return DataError(
        f"expected a scheduler with {expected} to train with, {type(scheduler).__name__} {reason}; set pipe.scheduler to "
        "the DDPM, DDIM or Euler scheduler that the model was trained with (no model of flow matching or EDM can be trained)"
    )


def prediction_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return the target of the U-Net's prediction: the noise, the velocity, or the clean latents.

    Args:
        scheduler: the noise schedule, or a scheduler that has one; its `prediction_type` decides.
        latents: clean latents x_0 (B, C, h, w).
        noise: epsilon (B, C, h, w).
        timesteps: (B,) integers.

    Raises:
        DataError: the scheduler has no noise schedule.
    """
    schedule = NoiseSchedule.of(scheduler)
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return latents
    alpha, sigma = schedule.scales(timesteps)
    return alpha * noise.float() - sigma * latents.float()


def snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Return min-SNR loss weights (B,): min(SNR, gamma), over SNR for noise and over SNR + 1 for velocity prediction.

    Args:
        scheduler: the noise schedule, or a scheduler that has one; its `prediction_type` decides.
        timesteps: (B,) integers.
        gamma: SNR above which the weight falls, > 0; 5 in the paper.

    Reference: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023.
    """
    schedule = NoiseSchedule.of(scheduler)
    alphas = schedule.alphas(timesteps)
    snr = alphas / (1 - alphas)
    if schedule.prediction_type == "sample":
        return snr.clamp(max=gamma)
    if schedule.prediction_type == "v_prediction":
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

    Noise is added in float32; the U-Net gets noisy latents in the dtype of the prompts' embeddings.

    Args:
        unet: the U-Net, with or without masks.
        scheduler: the noise schedule, or a scheduler that has one.
        latents: clean latents (B, C, h, w), scaled.
        prompt_embeds: embeddings of the prompts (B, L, D), in the U-Net's dtype.
        noise: epsilon (B, C, h, w).
        timesteps: (B,) integers.
        conditions: further keyword arguments of the U-Net, such as SDXL's `added_cond_kwargs`.
    """
    schedule = NoiseSchedule.of(scheduler)
    noisy = schedule.add_noise(latents, noise, timesteps)
    if prompt_embeds is not None:
        noisy = noisy.to(prompt_embeds.dtype)
    noise_pred = unet(noisy, timesteps, prompt_embeds, **conditions).sample
    target = prediction_target(schedule, latents, noise, timesteps)
    return torch.nn.functional.mse_loss(noise_pred.float(), target.float(), reduction="none").mean((1, 2, 3))
