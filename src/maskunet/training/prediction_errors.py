r"""What the network's prediction is trained towards: the noise of the data, or the base model's guided prediction.

.. math::
    L_{\mathrm{diffusion}} = \| \epsilon_{\theta \odot m}(x_t, t, c) - \epsilon \|^2, \qquad
    L_{\mathrm{guidance}} = \| \epsilon_{\theta \odot m}(x_t, t, c) - \hat\epsilon_w \|^2, \qquad
    \hat\epsilon_w = \epsilon_\theta(x_t, t, \bar c) + w (\epsilon_\theta(x_t, t, c) - \epsilon_\theta(x_t, t, \bar c))

The second one puts classifier-free guidance of scale w into the trained parameters: one call of the network per step then
does the work of two. :math:`\bar c` is the negative prompt.

Reference: Cardoso et al., "Adapter Guidance Distillation", TMLR 2025, for adapters.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from ..data import PromptEmbeds
from ..diffusion import diffusion_errors
from .base import Method
from .batches import Batch
from .config import TrainConfig


class PredictionErrors(Protocol):
    """The squared errors of the network's predictions for a batch."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the squared error of each sample, (B,), averaged over its latents' entries.

        Args:
            batch: the batch.
        """


class DiffusionErrors:
    """Errors to the noise, or to the velocity, of the data.

    Args:
        unet: the U-Net.
        scheduler: the noise schedule of training.
    """

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        self.unet, self.scheduler = unet, scheduler

    def __call__(self, batch: Batch) -> Tensor:
        """Return the errors (B,); see `PredictionErrors`."""
        inputs = (batch.latents, batch.prompt_embeds, batch.noise, batch.timesteps)
        return diffusion_errors(self.unet, self.scheduler, *inputs, **batch.conditions)


class GuidanceErrors:
    """Errors to the guided prediction of the base model.

    Args:
        pipe: the pipeline.
        scheduler: the noise schedule of training.
        embeds: embeddings of prompts.
        method: the method; the base model is the network without its parameters.
        config: settings of the run: guidance scale, rescale and negative prompt.

    Raises:
        SettingError: the method changes the base model itself.
    """

    def __init__(self, pipe: Any, scheduler: Any, embeds: PromptEmbeds, method: Method, config: TrainConfig) -> None:
        self.pipe, self.scheduler, self.embeds, self.method, self.config = pipe, scheduler, embeds, method, config
        with method.base_model(pipe):
            pass  # refused here, before anything is computed

    def __call__(self, batch: Batch) -> Tensor:
        """Return the errors (B,); see `PredictionErrors`."""
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps).to(batch.prompt_embeds.dtype)
        target = self.guided(noisy, batch)
        prediction = self.pipe.unet(noisy, batch.timesteps, batch.prompt_embeds, **batch.conditions).sample
        errors = nn.functional.mse_loss(prediction.float(), target.float(), reduction="none")
        return errors.mean((1, 2, 3))

    @torch.no_grad()
    def guided(self, noisy: Tensor, batch: Batch) -> Tensor:
        """Return the base model's guided prediction (B, C, h, w).

        Args:
            noisy: noisy latents (B, C, h, w).
            batch: their batch.
        """
        config, rows = self.config, len(noisy)
        assert config.guidance_scale is not None
        negative, negative_pooled = self.embeds([config.negative_prompt] * rows)
        conditions = dict(batch.conditions)
        if (added := conditions.get("added_cond_kwargs")) is not None and negative_pooled is not None:
            pooled = torch.cat([negative_pooled, added["text_embeds"]])
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": added["time_ids"].repeat(2, 1)}
        prompt_embeds = torch.cat([negative, batch.prompt_embeds])
        with self.method.base_model(self.pipe):
            both = self.pipe.unet(noisy.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), prompt_embeds, **conditions)
        uncond, cond = both.sample.float().chunk(2)
        guided = uncond + config.guidance_scale * (cond - uncond)
        if config.guidance_rescale:
            guided = rescale_noise_cfg(guided, cond, guidance_rescale=config.guidance_rescale)
        return guided


def build_errors(
    pipe: Any, scheduler: Any, embeds: PromptEmbeds, method: Method, config: TrainConfig
) -> PredictionErrors:
    """Return the errors of a run's objective.

    Args:
        pipe: the pipeline.
        scheduler: the noise schedule of training.
        embeds: embeddings of prompts.
        method: the method.
        config: settings of the run; `objective` decides.

    Raises:
        SettingError: the objective does not fit the method.
    """
    if config.objective == "guidance":
        return GuidanceErrors(pipe, scheduler, embeds, method, config)
    return DiffusionErrors(pipe.unet, scheduler)
