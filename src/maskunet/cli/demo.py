"""`maskunet demo`: the main job on the bundled model, from loading to a page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checks import check_output, check_seeds
from .defaults import guidance_scale as guidance_of
from .defaults import num_inference_steps
from .options import MAX_IMAGES, BundledGuidance, Seed, Steps, option, output

if TYPE_CHECKING:
    from torch import Tensor

    from ..network import LayerSpec

_RECORDED = 6  # prompts on which the density is measured
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def demo(
    output: Annotated[Path, output("Folder for the page and the images.", "demo")] = Path("demo"),
    count: Annotated[
        int, option(text="Number of prompts; they alternate over the six tasks.", default=96, min=6, max=MAX_IMAGES)
    ] = 96,
    steps: Steps = None,
    guidance_scale: BundledGuidance = None,
    seed: Seed = 0,
) -> None:
    """Compare the bundled model with and without masks, from the same noise: a judged table and a page."""
    check_seeds(seed, count)
    check_output(output)
    run_demo(
        output,
        count=count,
        steps=num_inference_steps("shapes", steps),
        guidance_scale=guidance_of("shapes", guidance_scale),
        seed=seed,
    )


def run_demo(output: Path, *, count: int, steps: int, guidance_scale: float, seed: int) -> None:
    """Generate base against masked, judge both, print the table, and write `index.html` and the images.

    Args:
        output: folder for the page and the images; made if missing.
        count: held-out prompts.
        steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
        seed: the first image's seed.

    Raises:
        DataError: the folder cannot be written.
    """
    import torch

    from .. import zoo
    from ..attaching import attach, record
    from ..evaluation import compare
    from ..files import make_folder, save_text
    from ..images import save_png, to_pil
    from ..maskers import load
    from ..pipelines import silence_loading
    from ..sampling import generate
    from ..sampling.supported_pipelines import check_steps
    from ..shapes.scenes import held_out_prompts
    from .demo_page import demo_page
    from .image_files import write_comparison

    start = time.monotonic()
    silence_loading()
    pipe = zoo.load("shapes")
    check_steps(pipe.scheduler, steps)
    make_folder(output)
    masker = load("shapes-masker", pipe)
    attach(pipe, masker)
    prompts = held_out_prompts(count)
    images: dict[str, Tensor] = {}

    def keep(side: str, run: int, side_images: Tensor) -> None:
        images[side] = side_images

    typer.echo(f"{count} held-out prompts, without and with masks, from the same noise ({steps} steps):")
    comparison = compare(
        pipe,
        prompts,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        batch_size=min(48, count),
        on_images=keep,
    )
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "progress": False}
    with record(pipe, keep="density") as trace:
        generate(pipe, [p.prompt for p in prompts[:_RECORDED]], seeds=seed, **options)
    layers = masker.network.layers
    timesteps = [float(t or 0) for t in trace.timesteps]
    curves = {"all targets": _mean_density(trace.density, layers)}
    for projection in _PROJECTIONS:
        curves[projection] = _mean_density(trace.density, [x for x in layers if x.name.endswith(projection)])
    typer.echo(comparison.to_markdown())
    for side, side_images in images.items():
        make_folder(output / side)
        for i, image in enumerate(to_pil(side_images)):
            save_png(image, output / side / f"{i:05d}.png")
    write_comparison(images, output / "comparison.png")
    seconds = time.monotonic() - start
    switched_off = 100 * (1 - sum(curves["all targets"]) / len(timesteps))
    summary = [
        f"{count} held-out prompts: combinations that training never drew, except for the eight single objects. One image "
        f"each without and with masks, from the same noise: {steps} DDIM steps, guidance {guidance_scale:g}, seed {seed}. "
        "A judge that reads nothing but pixels decides which images show their prompt. The model ignores words of relation, "
        "so position stands at chance and overall is shown with and without it. Brackets are 95 % intervals over distinct "
        "prompts; an interval of the difference that contains zero is compatible with no effect. This masker is not shown "
        "to help; "
        "docs/reproduction.md says why, and `maskunet search` is what gains most.",
        f"On {_RECORDED} of the prompts the masks switch off {switched_off:.2f} % of {masker.network.weights:,} weights in "
        f"{len(layers)} attention projections of the decoder. Which ones depends on the timestep and on the sample; the "
        "model's weights are untouched.",
        f"Made in {seconds:.0f} s with torch {torch.__version__} on {pipe.device.type}.",
    ]
    density = {name: list(zip(timesteps, values, strict=True)) for name, values in curves.items()}
    page = demo_page(comparison, images, density, title="maskunet: base against masked", summary=summary)
    save_text(page, output / "index.html")
    typer.echo(f"\npage: {output / 'index.html'}   ({seconds:.0f} s)")


def _mean_density(density: Mapping[str, Sequence[float]], layers: Iterable[LayerSpec]) -> list[float]:
    """Kept fraction of all weights of some layers, by call."""
    weighted = [(density[layer.name], layer.weights) for layer in layers]
    total = sum(weights for _, weights in weighted)
    calls = range(len(weighted[0][0]))
    return [sum(values[k] * weights for values, weights in weighted) / total for k in calls]
