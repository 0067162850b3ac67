"""Generate pictures from prompts, each from the noise of its own seed, so that a picture repeats in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attaching.attachment import disabled
from ..errors import DataError

#: Makes pictures (N, 3, H, W) in [0, 1] from N prompts, each from the noise of its own seed; the seam of all benchmarks.
Make = Callable[[Sequence[str], Sequence[int]], Tensor]


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | int = 0,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    negative_prompt: str | None = None,
    batch_size: int = 8,
    progress: bool = True,
    on_step: Callable[[float], None] | None = None,
) -> Tensor:
    """Generate one picture for each prompt.

    Args:
        pipe: a Stable Diffusion pipeline, with or without masks.
        prompts: N captions.
        seeds: a seed for each prompt, or the first of N consecutive ones.
        num_inference_steps: denoising steps, >= 1.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off.
        negative_prompt: what to steer away from.
        batch_size: prompts a call of the pipeline, >= 1.
        progress: show a progress bar.
        on_step: is told after every denoising step which share of the work is done, in (0, 1].

    Returns:
        Pictures (N, 3, H, W), float32 in [0, 1], on the CPU.

    Raises:
        DataError: no prompts, or a setting out of range.
    """
    if not prompts:
        raise DataError("expected at least one prompt, got none")
    if num_inference_steps < 1 or batch_size < 1:
        raise DataError(f"expected steps and batch size of at least 1, got {num_inference_steps} and {batch_size}")
    numbers = list(range(seeds, seeds + len(prompts))) if isinstance(seeds, int) else list(seeds)
    if len(numbers) != len(prompts):
        raise DataError(f"expected a seed for each of {len(prompts)} prompts, got {len(numbers)}")
    bar_config = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    try:
        for start in tqdm(range(0, len(prompts), batch_size), desc="generate", disable=not progress, leave=False):
            chunk = list(prompts[start : start + batch_size])
            # Noise is drawn on the CPU, so that a seed means the same picture on every device.
            generators = [torch.Generator().manual_seed(s) for s in numbers[start : start + batch_size]]
            told = None if on_step is None else _teller(on_step, start, len(chunk), len(prompts))
            out = pipe(
                chunk,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=None if negative_prompt is None else [negative_prompt] * len(chunk),
                generator=generators,
                output_type="np",
                callback_on_step_end=told,
            ).images
            pictures.append(torch.from_numpy(np.asarray(out, np.float32)).permute(0, 3, 1, 2))
    finally:
        pipe.set_progress_bar_config(**{"disable": False} | bar_config)
    return torch.cat(pictures)


def _teller(on_step: Callable[[float], None], start: int, count: int, total: int) -> Callable[..., dict[str, Any]]:
    """What a pipeline calls at the end of each step of a batch that begins at picture `start`."""

    def told(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps = max(int(getattr(pipe, "num_timesteps", 0)), index + 1)
        on_step((start + count * (index + 1) / steps) / total)
        return tensors

    return told


def maker(pipe: Any, *, masks: bool = True, **options: Any) -> Make:
    """Return a function that generates pictures from prompts and seeds.

    Args:
        pipe: a Stable Diffusion pipeline.
        masks: generate with the masks that are attached, if any; without them if false.
        options: passed to `generate`.
    """

    def make(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        def run() -> Tensor:
            return generate(pipe, prompts, seeds=seeds, batch_size=len(prompts), progress=False, **options)

        if masks:
            return run()
        with disabled(pipe):
            return run()

    return make
