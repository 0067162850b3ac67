"""`maskunet evaluate`: generate at scale, then measure the folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import typer

from .. import __version__
from ..errors import DataError
from .pictures import make_folder, save_text

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
