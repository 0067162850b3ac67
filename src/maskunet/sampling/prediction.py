"""What diffusers' steps compute from the U-Net's output: the guided prediction, and the clean latents that a step uses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: Schedulers whose step clips the predicted clean latents if `clip_sample` is set. Others may carry the setting without a
#: use, since `from_config` hands it on.
_CLIPPING = ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler")


def guide(unconditional: Tensor, conditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Return the guided output of the two halves, (M, C, h, w).

    Args:
        unconditional: output without prompts, (M, C, h, w).
        conditional: output with prompts, (M, C, h, w).
        scale: strength of classifier-free guidance.
        rescale: share of the output whose deviation is set to that of `conditional`, in [0, 1], per sample.

    Reference: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024, section 3.4.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return guided
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    return rescale_noise_cfg(guided, conditional, guidance_rescale=rescale)  # type: ignore[no-any-return]


def clean_latents(scheduler: Any, scaled: Tensor, output: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return the predicted clean latents (M, C, h, w) that a scheduler's step uses.

    They are thresholded or clipped, if the scheduler's config says so and its step does it.

    Args:
        scheduler: the scheduler.
        scaled: its scaled latents (M, C, h, w).
        output: the U-Net's output for them, (M, C, h, w).
        alpha: alpha_t of the step.
        sigma: sigma_t of the step.
    """
    config, clean = scheduler.config, output
    if config.prediction_type == "v_prediction":
        clean = alpha * scaled - sigma * output
    elif config.prediction_type == "epsilon":
        clean = (scaled - sigma * output) / alpha
    # UniPC thresholds only where it integrates the clean latents.
    can_threshold = hasattr(scheduler, "_threshold_sample") and getattr(scheduler, "predict_x0", True)
    if can_threshold and config.get("thresholding"):
        return scheduler._threshold_sample(clean)  # type: ignore[no-any-return]
    if config.get("clip_sample") and type(scheduler).__name__ in _CLIPPING:
        return clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    return clean
