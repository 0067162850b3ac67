"""The demo: the main job on the bundled model, from loading to a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from .. import zoo
from ..attaching.attachment import attach, record
from ..checkpoint import load
from ..evaluation import compare
from ..files import make_folder, save_text
from ..pipelines import silence_loading
from ..sampling import generate
from ..shapes.scenes import held_out_prompts
from .demo_page import page
from .image_files import save_image, to_image, write_comparison


def run_demo(output: Path, *, count: int, steps: int, guidance_scale: float, seed: int) -> None:
    """Generate base against masked, judge both, print the table, write `index.html` and the pictures."""
    started = time.monotonic()
    silence_loading()
    pipe = zoo.load("shapes")
    masker = load(zoo.path("shapes-masker"), pipe)
    attach(pipe, masker)
    make_folder(output)
    prompts = held_out_prompts(count)
    pictures: dict[str, Tensor] = {}

    def keep(side: str, run: int, made: Tensor) -> None:
        pictures[side] = made

    typer.echo(f"{count} held-out prompts, without and with masks, from the same noise ({steps} steps):")
    result = compare(
        pipe,
        prompts,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        batch_size=min(48, count),
        keep=keep,
    )
    with record(pipe, keep="density") as trace:
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "progress": False}
        generate(pipe, [p.prompt for p in prompts[:6]], seeds=seed, **options)
    timesteps = [float(t or 0) for t in trace.timesteps]
    density = {"all targets": (timesteps, _mean_density(trace.density, masker.network.layers))}
    for kind in ("to_q", "to_k", "to_v", "to_out.0"):
        layers = [layer for layer in masker.network.layers if layer.name.endswith(kind)]
        density[kind] = (timesteps, _mean_density(trace.density, layers))
    typer.echo(result.to_markdown())
    for side, made in pictures.items():
        for i, picture in enumerate(made):
            make_folder(output / side)
            save_image(to_image(picture), output / side / f"{i:05d}.png")
    write_comparison(pictures, output / "comparison.png")
    seconds = time.monotonic() - started
    kept = density["all targets"][1]
    summary = [
        f"{count} held-out prompts (combinations that training never drew; of single objects there are only eight), one "
        "picture each without and with masks, from the same noise: "
        f"{steps} DDIM steps, guidance {guidance_scale:g}, seed {seed}. A judge that reads pixels only says which are "
        "right; brackets are 95 % intervals, and intervals of the difference that contain zero show no effect.",
        f"Measured on six of the prompts, the masks switch off {100 * (1 - sum(kept) / len(kept)):.2f} % of "
        f"{masker.network.weights:,} weights in "
        f"{len(masker.network.layers)} attention projections of the decoder; which ones depends on the timestep and on "
        "the sample. The model's weights are untouched.",
        f"Made in {seconds:.0f} s with torch {torch.__version__} on {pipe.device.type}.",
    ]
    text = page(result, pictures, density, title="maskunet: base against masked", summary=summary)
    save_text(text, output / "index.html")
    typer.echo(f"\npage: {output / 'index.html'}   ({seconds:.0f} s)")


def _mean_density(density: dict[str, list[float]], layers: object) -> list[float]:
    chosen = [(density[layer.name], layer.weights) for layer in layers]  # type: ignore[attr-defined]
    total = sum(weights for _, weights in chosen)
    return [sum(values[k] * weights for values, weights in chosen) / total for k in range(len(chosen[0][0]))]
