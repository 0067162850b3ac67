"""`maskunet evaluate`: generate at scale, then measure the folder; or run a benchmark."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from ..version import __version__
from .benchmark import run_benchmark_command
from .options import (
    BatchSize,
    Device,
    Dtype,
    MaskerPath,
    Preset,
    Rewards,
    Seed,
    local_device,
    open_pipeline,
    read_prompts,
)

_SHOWN = ("fid", "kid", "cmmd", "precision", "recall", "clip_score")


def wait_for(folder: Path, count: int, patience_s: float = 600.0) -> None:
    """Wait until all shards are there; other processes write them.

    Raises:
        DataError: no picture came for a long time.
    """
    before, since = -1, time.monotonic()
    while (there := len(list(folder.glob("*.json")))) < count:
        if there != before:
            before, since = there, time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise DataError(f"expected {count} pictures in {folder}, {there} came and no more; run the command again")
        time.sleep(0.2)


def run_evaluation(
    *,
    pipe: Any,
    prompts: list[str] | None,
    pictures: Path,
    reference: Path | None,
    features: list[str],
    resolution: int,
    settings: dict[str, Any],
    output: Path,
    device: Any,
    **options: Any,
) -> None:
    """Generate where there is a pipeline, measure, print a table and write `metrics.json` and `metrics.md`."""
    from ..evaluation.features import load_features
    from ..evaluation.folder import generate_folder, measure
    from ..files import make_folder, save_text

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    spaces = [load_features(name, device) for name in features] if rank == 0 else []  # errors before hours of work
    if pipe is not None and prompts is not None:
        made = generate_folder(pipe, prompts, pictures, settings=settings, rank=rank, world=world, **options)
        typer.echo(f"{made} pictures made, {pictures}")
        if rank > 0:
            return
        wait_for(pictures, len(prompts))
    make_folder(output)
    found = {
        name: measure(pictures, reference, space, resolution=resolution)
        for name, space in zip(features, spaces, strict=True)
    }
    import torch

    record = {
        "pictures": str(pictures),
        "reference": None if reference is None else str(reference),
        "resolution": resolution,
        "settings": settings | options,
        "metrics": found,
        "versions": {"maskunet": __version__, "torch": torch.__version__},
    }
    columns = [c for c in _SHOWN if any(c in m for m in found.values())]
    lines = [f"| features | n | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name, values in found.items():
        cells = [f"{values[c]:.4f}" if c in values else "" for c in columns]
        lines.append(f"| {name} | {values['n']:.0f} | {' | '.join(cells)} |")
    save_text(json.dumps(record, indent=1) + "\n", output / "metrics.json")
    save_text("\n".join(lines) + "\n", output / "metrics.md")
    typer.echo("\n".join(lines))


def evaluate(
    output: Annotated[Path, typer.Option(help="Folder for the figures (JSON and Markdown).")] = Path("evaluation"),
    model: Annotated[
        str | None, typer.Option(help="Pipeline to generate with, as elsewhere; or give --pictures.")
    ] = None,
    masker: MaskerPath = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Text file with a prompt a line; or a benchmark's own, see --benchmark.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="geneval (--prompts-file evaluation_metadata.jsonl; 'shapes' has its own) or t2i-compbench (--prompts-file "
            "color_val.txt, or a folder of such)."
        ),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(
            help="Of a benchmark: a comma list of base, masker, search, syngen, search+masker, syngen+masker; base,masker "
            "(or both) by default where there is a masker."
        ),
    ] = None,
    reward: Rewards = None,
    preset: Preset = None,
    search_batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts that are searched at once; 1.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of a benchmark: pictures a prompt; GenEval's 4 or T2I-CompBench's 10.")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="For GenEval: 'judge' (of shapes) or a Mask2Former's folder or hub id; Swin-S on COCO."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="For GenEval: the CLIP that names colours, a folder or a hub id; OpenAI's ViT-L/14."),
    ] = None,
    vqa: Annotated[
        str | None,
        typer.Option(help="For T2I-CompBench: a BLIP for questions, a folder or a hub id; its own by default."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="coco2014-30k or coco2017-5k: prompts, number and size as published.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's caption annotations, for --protocol.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures: to measure, or to generate into (resumable).")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Folder of real pictures, for FID, KID, ...")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(help="clip:SOURCE, dinov2:SOURCE, inception or shapes (the bundled CLIP); may be repeated."),
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=8, help="Pixels a side that both sets are brought to.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use the first so many prompts.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver++, ...; the model's own.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; 50, and 30 with T2I-CompBench, by default.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of classifier-free guidance; 7.5, and 9 with GenEval, by default.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Measure a folder of pictures or a model: FID, KID, CMMD, precision and recall, CLIP score; or run a benchmark."""
    from .. import pipelines, zoo
    from ..evaluation.coco import PROTOCOLS, coco_captions

    if model is None and pictures is None:
        raise DataError("expected --model to generate with, or --pictures to measure")
    if benchmark is not None:
        if protocol or reference or features or annotations or resolution:
            raise DataError(
                "expected --benchmark without --protocol, --annotations, --reference, --features, --resolution"
            )
        run_benchmark_command(
            benchmark,
            model=model,
            masker=masker,
            prompts_file=prompts_file,
            pictures=pictures,
            sides=sides,
            rewards=reward,
            preset=preset,
            search_batch_size=search_batch_size or 1,
            samples=samples,
            sources={"detector": detector, "clip": clip, "vqa": vqa},
            limit=limit,
            output=output,
            scheduler=scheduler,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
        )
        return
    if sides or reward or preset or search_batch_size or samples or detector or clip or vqa:
        raise DataError(
            "expected --benchmark with --sides, --reward, --preset, --search-batch-size, --samples, --detector, --clip or "
            "--vqa, got none"
        )
    if protocol is not None and protocol not in PROTOCOLS:
        raise DataError(f"expected a protocol ({', '.join(PROTOCOLS)}), got {protocol!r}")
    published = PROTOCOLS[protocol] if protocol else None
    if published and annotations is None:
        raise DataError(f"expected --annotations with --protocol, COCO's {published.annotations}")
    prompts = None
    if model is not None:
        found = coco_captions(annotations, published.count, seed) if published and annotations else None
        prompts = (found or read_prompts(None, prompts_file))[:limit]
    names = [f"clip:{zoo.path('shapes-clip')}" if n == "shapes" else n for n in features or ["shapes"]]
    if not features and model != "shapes":
        raise DataError("expected --features (clip:SOURCE, dinov2:SOURCE, inception); only 'shapes' has its own")
    where = local_device(device)
    pipe = open_pipeline(model, masker, device, dtype, scheduler) if model else None
    pipelines.silence_loading()
    run_evaluation(
        pipe=pipe,
        prompts=prompts,
        pictures=pictures or output / "pictures",
        reference=reference,
        features=names,
        resolution=resolution or (published.resolution if published else 64 if model == "shapes" else 256),
        settings={"model": model, "masker": masker, "scheduler": type(pipe.scheduler).__name__} if pipe else {},
        output=output,
        device=where,
        **(
            {
                "seed": seed,
                "batch_size": batch_size,
                "num_inference_steps": steps or 50,
                "guidance_scale": 7.5 if guidance_scale is None else guidance_scale,
            }
            if pipe
            else {}
        ),
    )
