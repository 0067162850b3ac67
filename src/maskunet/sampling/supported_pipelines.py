"""Pipelines that the stepwise loop can run: text to image, with a scheduler whose steps it knows."""

from __future__ import annotations

from typing import Any

from ..errors import DataError, TargetError

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
