"""Pipelines that the stepwise loop can run: text to image, with a scheduler whose steps it knows."""

from __future__ import annotations

from typing import Any

from ..errors import DataError

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


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that does more than text to image, or whose scheduler is not supported.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        DataError: the pipeline is not supported.
    """
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
