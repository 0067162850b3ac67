"""Pipelines that the stepwise loop can run: text to image, with a scheduler whose steps it knows."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import DataError, SettingError, TargetError, first_line

#: Schedulers whose steps `stepwise` describes; each is tested against its pipeline.
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
#: Schedulers of distilled models, which `generate` runs and the stepwise loop does not.
_FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")


def is_xl(pipe: Any) -> bool:
    """Return whether a pipeline is of the XL kind, which upcasts its decoder and has a watermark but no safety checker.

    Args:
        pipe: a Stable Diffusion pipeline.
    """
    return hasattr(pipe, "text_encoder_2")


def check_is_pipeline(pipe: Any) -> None:
    """Refuse what is no pipeline at all.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        TargetError: it is something else, such as a U-Net.
    """
    if not (callable(pipe) and all(hasattr(pipe, name) for name in ("unet", "vae", "scheduler"))):
        raise TargetError(
            f"expected a Stable Diffusion pipeline, got {type(pipe).__name__}; pass what "
            "StableDiffusionPipeline.from_pretrained or maskunet.zoo.load returned"
        )


def check_input_channels(pipe: Any) -> None:
    """Refuse a U-Net that reads an image beside the noise, as those of inpainting and editing models do.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        DataError: its input channels are more than its latents'.
    """
    channels, latents = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels != latents:
        raise DataError(
            f"expected a text-to-image U-Net of {latents} input channels, got {channels} channels: inpainting and editing "
            "models also need an image; call the pipeline yourself, with maskunet.attach and .detach around it"
        )


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that does more than text to image, or whose scheduler is not supported.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        DataError: the pipeline is not supported.
    """
    check_is_pipeline(pipe)
    scheduler = type(pipe.scheduler).__name__
    if scheduler not in SCHEDULERS:
        raise DataError(
            f"expected a scheduler among {', '.join(SCHEDULERS)}, got {scheduler}; set pipe.scheduler to one"
        )
    prediction_type = pipe.scheduler.config.prediction_type
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise DataError(f"expected a scheduler that predicts epsilon, v_prediction or sample, got {prediction_type!r}")
    unet, vae = pipe.unet.config, pipe.vae.config
    if unet.in_channels != vae.latent_channels or getattr(unet, "time_cond_proj_dim", None) is not None:
        raise DataError(
            f"expected a text-to-image U-Net of {vae.latent_channels} input channels without guidance embedding, got "
            f"{unet.in_channels} channels; inpainting, image-to-image and distilled (LCM) models are not supported"
        )


def check_steps(scheduler: Any, steps: int) -> None:
    """Refuse a number of denoising steps with which a scheduler fails, or leaves finite numbers.

    Most schedulers cannot take every one of their training timesteps. A copy takes the steps on four numbers, without a
    U-Net.

    Args:
        scheduler: a scheduler; one that this module does not name is not checked.
        steps: denoising steps.

    Raises:
        SettingError: the scheduler cannot take that number of steps.
    """
    name = type(scheduler).__name__
    if name not in (*SCHEDULERS, *_FEW_STEP_SCHEDULERS):
        return
    trial, reason = copy.deepcopy(scheduler), "its latents are no longer finite"
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            trial.set_timesteps(steps, device="cpu")
            x = torch.full((1, 4, 1, 1), float(trial.init_noise_sigma))
            for timestep in trial.timesteps:
                trial.scale_model_input(x, timestep)
                x = trial.step(torch.zeros_like(x), timestep, x, return_dict=False)[0]
            if bool(torch.isfinite(x).all()):
                return
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
            reason = first_line(error) or type(error).__name__
    raise SettingError(
        f"expected a number of steps that {name} can take, got {steps} ({reason}); take another number or scheduler"
    )


def check_call(pipe: Any, steps: int, options: Mapping[str, Any]) -> None:
    """Refuse what a pipeline's call would fail with: steps, a size, or options that this kind of pipeline does not have.

    Args:
        pipe: a diffusers pipeline.
        steps: denoising steps.
        options: further arguments of its call: guidance_rescale, height, width.

    Raises:
        SettingError: one of them cannot be used.
    """
    check_steps(pipe.scheduler, steps)
    parameters = inspect.signature(type(pipe).__call__).parameters
    if missing := [name for name in options if name not in parameters]:
        raise SettingError(
            f"expected a pipeline that takes {missing[0]}, {type(pipe).__name__} does not; leave it out"
        )
    for name in ("height", "width"):
        if (options.get(name) or 0) % pipe.vae_scale_factor:
            raise SettingError(f"expected {name} in multiples of {pipe.vae_scale_factor}, got {options[name]}")
