"""Generate images from prompts, each from the noise of its own seed, so that an image is the same in any batch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attaching import disabled
from ..moving import outside_inference_mode
from .guidance_scale import default_guidance_scale
from .inputs import SamplingOptions, checked_prompts, checked_seeds
from .result import GeneratedImages
from .supported_pipelines import check_call, check_input_channels, check_is_pipeline

#: One side of a comparison: images (N, 3, H, W) in [0, 1] for N prompts and N seeds. The interface of all benchmarks.
Side = Callable[[Sequence[str], Sequence[int]], Tensor]


@outside_inference_mode()
def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | int = 0,
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    progress: bool = True,
    on_step: Callable[[float], None] | None = None,
) -> GeneratedImages:
    """Generate one image per prompt.

    Args:
        pipe: a Stable Diffusion pipeline, with or without masks.
        prompts: N captions.
        seeds: one seed per prompt, or the first of N consecutive ones.
        num_inference_steps: denoising steps, 1 to 1000.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off. 7.5, or 4 with the bundled model,
            if None.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].
        negative_prompt: prompt to steer away from.
        height: height of the images in pixels; the model's own if None.
        width: width of the images in pixels; the model's own if None.
        batch_size: prompts per call of the pipeline, >= 1.
        progress: show a progress bar.
        on_step: called after every denoising step with the finished share of the work, in (0, 1].

    Raises:
        DataError: no prompts, or a model that needs an image beside them.
        SettingError: another number of seeds, an option out of range, or one that this kind of pipeline does not have.
        TargetError: no pipeline.
    """
    prompts = checked_prompts(prompts)
    seeds = checked_seeds(seeds, len(prompts))
    SamplingOptions(
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        batch_size=batch_size,
    )
    check_is_pipeline(pipe)
    check_input_channels(pipe)
    if guidance_scale is None:
        guidance_scale = default_guidance_scale(pipe)
    further = {"guidance_rescale": guidance_rescale or None, "height": height, "width": width}
    options = {name: value for name, value in further.items() if value is not None}
    check_call(pipe, num_inference_steps, options)
    settings = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "scheduler": type(pipe.scheduler).__name__,
        **options,
    }
    images = []
    with _own_loop(pipe):
        for start in tqdm(range(0, len(prompts), batch_size), desc="generate", disable=not progress, leave=False):
            chunk = prompts[start : start + batch_size]
            # Noise is drawn on the CPU, so that a seed means the same image on every device.
            generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + batch_size]]
            output = pipe(
                chunk,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=None if negative_prompt is None else [negative_prompt] * len(chunk),
                generator=generators,
                output_type="np",
                callback_on_step_end=_step_callback(on_step, start, len(chunk), len(prompts)),
                **options,
            ).images
            images.append(torch.from_numpy(np.asarray(output, np.float32)).permute(0, 3, 1, 2))
    return GeneratedImages(torch.cat(images), prompts, seeds, settings)


@contextlib.contextmanager
def _own_loop(pipe: Any) -> Iterator[None]:
    """Give a pipeline's loop a scheduler of its own and no progress bar inside the context."""
    scheduler, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
    bar_config = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        if bar_config is None:
            vars(pipe).pop("_progress_bar_config", None)
        else:
            pipe._progress_bar_config = bar_config


def _step_callback(
    on_step: Callable[[float], None] | None, start: int, count: int, total: int
) -> Callable[..., dict[str, Any]] | None:
    """Return the callback of a pipeline for a batch of `count` of `total` images that begins at image `start`."""
    if on_step is None:
        return None

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps = max(int(getattr(pipe, "num_timesteps", 0)), index + 1)
        on_step((start + count * (index + 1) / steps) / total)
        return tensors

    return callback


def pipeline_side(pipe: Any, *, masks: bool = True, **options: Any) -> Side:
    """Return the side that generates with a pipeline.

    Args:
        pipe: a Stable Diffusion pipeline.
        masks: generate with the attached masks, if any; without them if false.
        options: passed to `generate`, except `seeds`, `batch_size` and `progress`.
    """

    def run(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with contextlib.nullcontext() if masks else disabled(pipe):
            return generate(pipe, prompts, seeds=seeds, batch_size=len(prompts), progress=False, **options).tensor

    return run
