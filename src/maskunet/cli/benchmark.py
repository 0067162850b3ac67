"""`maskunet benchmark`: GenEval or T2I-CompBench on the base model, a masker, a search, SynGen, or several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError
from ..evaluation.published import BENCHMARKS, read_sides
from ..settings import MAX_GUIDANCE_SCALE
from ..zoo import defaults as bundled
from .app import Command, new_app, without_options
from .checks import check_output, finite
from .defaults import is_bundled, num_inference_steps
from .loading import check_compose, local_device, masker_to_attach, open_pipeline
from .options import (
    MAX_STEPS,
    Compose,
    Device,
    Dtype,
    GuidanceRescale,
    Limit,
    MaskerSources,
    OptionalModel,
    Rewards,
    Scheduler,
    Seed,
    batch_size,
    option,
    output,
)

benchmark_app = new_app("Run a benchmark on a model, or score a folder of images in its layout.")

_HELP = {
    "geneval": "Run GenEval: are the objects, their number, colours and positions those of the prompt?",
    "t2i-compbench": "Run T2I-CompBench: are colours, shapes and textures bound to the right objects?",
}
#: Options of one benchmark alone.
_ONLY = {"detector": "geneval", "clip": "geneval", "vqa": "t2i-compbench"}


def _published(name: str, with_shapes: float | None = None) -> str:
    """Return the text of a default that each benchmark's own script sets."""
    text = ", ".join(f"{getattr(values, name):g} with {benchmark}" for benchmark, values in BENCHMARKS.items())
    return text if with_shapes is None else f"{text}; {with_shapes:g} with shapes"


def _benchmark(
    context: typer.Context,
    model: OptionalModel = None,
    masker: MaskerSources = None,
    compose: Compose = None,
    images: Annotated[
        Path | None, option(text="Folder of images to score instead of generating with --model.", default="none")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        option(
            text="The benchmark's prompts: evaluation_metadata.jsonl; color_val.txt, or a folder of such files.",
            default="held-out prompts with shapes and geneval, else required",
        ),
    ] = None,
    sides: Annotated[
        str | None,
        option(
            text="Sides with commas: base, masker, search, syngen, search+masker, syngen+masker.",
            default="base, and masker if there is one",
        ),
    ] = None,
    reward: Rewards = None,
    preset: Annotated[
        str | None, option(text="Preset of a search: default, masks, fast or paper.", default="default")
    ] = None,
    images_per_prompt: Annotated[
        int | None, option(text="Images per prompt.", default=_published("images_per_prompt"), min=1)
    ] = None,
    limit: Limit = None,
    detector: Annotated[
        str | None,
        option(
            text="Detector: 'judge' (of shapes), or a folder or hub id of a Mask2Former.",
            default="judge with shapes, else Mask2Former Swin-S on COCO",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        option(text="CLIP that names colours: a folder or a hub id.", default="OpenAI's ViT-L/14"),
    ] = None,
    vqa: Annotated[
        str | None, option(text="BLIP that answers questions: a folder or a hub id.", default="the benchmark's")
    ] = None,
    output: Annotated[Path, output("Folder for images, summary.json and summary.md.", "benchmark")] = Path(
        "benchmark"
    ),
    steps: Annotated[
        int | None,
        option(
            text="Denoising steps.",
            default=_published("num_inference_steps", bundled.NUM_INFERENCE_STEPS),
            min=1,
            max=MAX_STEPS,
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        option(
            text="Strength of classifier-free guidance.",
            default=_published("guidance_scale", bundled.GUIDANCE_SCALE),
            min=0,
            max=MAX_GUIDANCE_SCALE,
            callback=finite,
        ),
    ] = None,
    guidance_rescale: GuidanceRescale = 0.0,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    batch_size: Annotated[int, batch_size(8)] = 8,
    search_batch_size: Annotated[int, option(text="Prompts per search.", default=1, min=1)] = 1,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    name = str(context.info_name)
    if (model is None) == (images is None):
        raise SettingError("expected --model to generate with or --images to score, one of them")
    check_compose(masker, compose)
    check_output(output)
    from ..distributed import process_rank

    scorers: dict[str, Any] = {"detector": detector, "clip": clip, "vqa": vqa}
    if model is None:
        if process_rank()[0] == 0:
            from ..evaluation import score_images

            scored = score_images(images or "", name, output_dir=output, device=local_device(device), **scorers)
            typer.echo(scored.to_markdown())
        return
    from ..evaluation import evaluate
    from ..evaluation.checks import check_search
    from ..evaluation.loading import load_benchmark

    check_search(read_sides(sides, bool(masker)), reward or None, preset, bundled=is_bundled(model))
    load_benchmark(name, prompts_file, limit=limit, bundled=is_bundled(model), scores=False, **scorers)
    loaded_masker = masker_to_attach(masker, compose)
    pipe = open_pipeline(model, None, device, dtype, scheduler)
    published = BENCHMARKS[name]
    report = evaluate(
        pipe,
        name,
        prompts=prompts_file,
        masker=loaded_masker,
        sides=sides,
        reward=reward or None,
        search_config=preset,
        images_per_prompt=images_per_prompt,
        output_dir=output,
        num_inference_steps=num_inference_steps(model, steps, published.num_inference_steps),
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        seed=seed,
        batch_size=batch_size,
        search_batch_size=search_batch_size,
        limit=limit,
        settings={"model": model},
        on_generated=lambda folder, count: typer.echo(f"{count} images made, {folder}"),
        **scorers,
    )
    if report.scores is not None:
        typer.echo(report.to_markdown())


for _name, _help in _HELP.items():
    _others = {option for option, owner in _ONLY.items() if _name != owner}
    benchmark_app.command(_name, help=_help, cls=Command)(without_options(_benchmark, _others))
