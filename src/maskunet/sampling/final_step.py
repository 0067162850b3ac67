"""The last step of generation, as a pipeline takes it: decode, watermark, safety checker, values in [0, 1].

Images of a loop of our own must be made like those of the pipeline's call, or a comparison of the two measures the
difference: SDXL's watermark, the precision of the decoder, and the safety checker, which blackens the images it flags.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.scaling import unscale_latents, uses_statistics
from .offload import is_grouped, pipeline_precision, without_offload
from .supported_pipelines import is_xl


@torch.no_grad()
def final_images(pipe: Any, latents: Tensor, generators: Sequence[torch.Generator], dtype: torch.dtype) -> Tensor:
    """Return the images (B, 3, H, W) in [0, 1], float32 on the CPU, that the pipeline itself makes of its last latents.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL).
        latents: clean latents as the U-Net sees them, (B, C, h, w).
        generators: generators of the images' noise, for decoders that draw from them.
        dtype: precision of the safety checker's input, the text encoder's.
    """
    vae = pipe.vae
    # No gradient flows here, so a decoder that diffusers offloads by groups of layers may stay so.
    with contextlib.nullcontext() if is_grouped(vae) else without_offload(vae), pipeline_precision(pipe):
        if is_xl(pipe):
            if vae.dtype == torch.float32:  # also where the pipeline has upcast it
                latents = latents.float()
            scaled = unscale_latents(vae, latents, statistics=uses_statistics(pipe)).to(vae.dtype)
            images = vae.decode(scaled, return_dict=False)[0]
            if getattr(pipe, "watermark", None) is not None:
                images = pipe.watermark.apply_watermark(images)
            return pipe.image_processor.postprocess(images, output_type="pt").float().cpu()  # type: ignore[no-any-return]
        scaled = unscale_latents(vae, latents, statistics=uses_statistics(pipe)).to(vae.dtype)
        images = vae.decode(scaled, return_dict=False, generator=list(generators))[0]
    flags = None
    if getattr(pipe, "safety_checker", None) is not None:
        images, flags = pipe.run_safety_checker(images, pipe._execution_device, dtype)
    # The checker's black is 0 already; mapping it from [-1, 1] would make it grey.
    shown = [True] * len(images) if flags is None else [not flag for flag in flags]
    return pipe.image_processor.postprocess(images, output_type="pt", do_denormalize=shown).float().cpu()  # type: ignore[no-any-return]


def is_black(images: Tensor) -> Tensor:
    """Return which images are black in every pixel, (N,): a safety checker has flagged them.

    Args:
        images: (N, 3, H, W) in [0, 1].
    """
    return images.flatten(1).amax(1) == 0
