"""`maskunet generate`: images from prompts, one image and its record at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from ..settings import MAX_PIXELS
from .checks import check_output, check_seeds, finite, read_prompts
from .defaults import is_bundled, num_inference_steps
from .loading import describe_maskers, open_pipeline
from .options import (
    Compose,
    Device,
    Dtype,
    Guidance,
    GuidanceRescale,
    MaskerSources,
    Model,
    NegativePrompt,
    Prompts,
    PromptsFile,
    Scheduler,
    Seed,
    Steps,
    batch_size,
    option,
    output,
)


def _pixels(side: str) -> Any:
    return option(text=f"{side} of the images in pixels.", default="the model's own", min=8, max=MAX_PIXELS)


def generate(
    prompt: Prompts = None,
    prompts_file: PromptsFile = None,
    model: Model = "shapes",
    masker: MaskerSources = None,
    compose: Compose = None,
    strength: Annotated[
        float,
        option(
            text="How strongly the masks act, from 0 (the base model) to 1.",
            default="1",
            min=0,
            max=1,
            callback=finite,
        ),
    ] = 1.0,
    output: Annotated[Path, output("Folder for 00000.png, 00000.json and so on.", "images")] = Path("images"),
    compare_base: Annotated[
        bool, option("--compare-base", text="Also generate without masks and SynGen, side by side.", default="off")
    ] = False,
    syngen: Annotated[
        bool,
        option(
            "--syngen",
            text="Bind modifiers to their nouns by attention (SynGen); needs spaCy except with shapes.",
            default="off",
        ),
    ] = False,
    syngen_scale: Annotated[
        float, option(text="Length of SynGen's gradient steps.", default="20, its authors'", min=0, callback=finite)
    ] = 20.0,
    negative_prompt: NegativePrompt = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    guidance_rescale: GuidanceRescale = 0.0,
    height: Annotated[int | None, _pixels("Height")] = None,
    width: Annotated[int | None, _pixels("Width")] = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    batch_size: Annotated[int, batch_size(4)] = 4,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Generate images from prompts, with or without masks. The same command again makes only what is missing."""
    prompts = read_prompts(prompt, prompts_file)
    if compare_base and not masker and not syngen:
        raise DataError("expected --masker or --syngen with --compare-base; without one there is nothing to compare")
    if strength != 1 and not masker:
        raise DataError("expected --masker with --strength; without masks there is nothing to weaken")
    check_seeds(seed, len(prompts))
    check_output(output)
    options: dict[str, Any] = {
        "num_inference_steps": num_inference_steps(model, steps),
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
    }
    shape = {"guidance_rescale": guidance_rescale or None, "height": height, "width": width}
    further = {name: value for name, value in shape.items() if value is not None}
    options |= further
    pipe = open_pipeline(model, masker, device, dtype, scheduler, strength, compose)

    from ..sampling.guidance_scale import default_guidance_scale

    if guidance_scale is None:
        options["guidance_scale"] = default_guidance_scale(pipe)

    from ..evaluation.image_jobs import ImageJob, generate_missing
    from ..evaluation.image_reader import warn_black
    from ..sampling import pipeline_side
    from ..sampling.supported_pipelines import check_call
    from .image_files import beside

    check_call(pipe, options["num_inference_steps"], further)
    settings = options | {
        "model": model,
        "masker": describe_maskers(masker, compose),
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "compare_base": compare_base,
    }
    if strength != 1:
        settings["strength"] = strength
    if syngen:
        from ..syngen import shapes_phrases, syngen_side

        phrases = shapes_phrases if is_bundled(model) else None
        side = syngen_side(pipe, phrases=phrases, scale=syngen_scale, **options)
        settings["syngen_scale"] = syngen_scale
    else:
        side = pipeline_side(pipe, **options)
    if compare_base:
        side = beside(pipeline_side(pipe, masks=False, **options), side)
    jobs = [
        ImageJob(output / f"{i:05d}.png", output / f"{i:05d}.json", text, seed + i) for i, text in enumerate(prompts)
    ]
    count = generate_missing(side, jobs, settings=settings, batch_size=batch_size)
    typer.echo(f"{count} images made, {len(jobs)} in {output}")
    warn_black(output, [job.file for job in jobs])
