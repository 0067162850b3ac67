"""Write pictures with their settings beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attaching.attachment import disabled
from ..files import make_folder, save_text, save_whole
from ..metrics.geneval_rules import check
from ..sampling import Side, generate
from ..shapes.judge import judge
from ..shapes.scenes import held_out_prompts
from ..version import __version__


def to_image(picture: Tensor) -> Image.Image:
    """Turn a picture (3, H, W) in [0, 1] into a PIL image."""
    return Image.fromarray((picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    save_whole(path, lambda part: image.save(part, "PNG"))


def write_pictures(
    pipe: Any,
    prompts: Sequence[str],
    folder: Path,
    *,
    compare_base: bool,
    settings: dict[str, Any],
    seed: int,
    make: Side | None = None,
    **options: Any,
) -> list[Path]:
    """Generate pictures and write each as `00000.png` with `00000.json`; with `compare_base`, base left, masked right.

    Args:
        pipe: the pipeline.
        prompts: what to draw.
        folder: where to write.
        compare_base: also draw each without masks.
        settings: goes into the JSON files.
        seed: the first picture's.
        make: makes the pictures in the place of `generate`, a batch at a time.
        options: of `generate`.

    Returns:
        The pictures' files.
    """
    make_folder(folder)
    if make is None:
        pictures = generate(pipe, prompts, seeds=seed, **options).tensor
    else:
        numbers, size = range(seed, seed + len(prompts)), options["batch_size"]
        chunks = [slice(start, start + size) for start in range(0, len(prompts), size)]
        pictures = torch.cat([make(prompts[rows], numbers[rows]) for rows in chunks])
    if compare_base:
        with disabled(pipe):
            base = generate(pipe, prompts, seeds=seed, **options).tensor
        gap = torch.ones(*pictures.shape[:3], 4)
        pictures = torch.cat([base, gap, pictures], 3)
    written = []
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        path = folder / f"{i:05d}.png"
        save_image(to_image(picture), path)
        record = {"prompt": prompt, "seed": seed + i, **settings, **options, "compare_base": compare_base}
        save_text(json.dumps(record | {"maskunet": __version__}, indent=1) + "\n", path.with_suffix(".json"))
        written.append(path)
    return written


def write_comparison(pictures: dict[str, Tensor], path: Path, columns: int = 12, rows: int = 3) -> None:
    """Write a sheet of the first pictures of both sides: a row of base above its row of masked, twice the size."""
    columns = min(columns, len(pictures["base"]))
    strips = []
    for start in range(0, min(rows, len(pictures["base"]) // columns) * columns, columns):
        for side in ("base", "masked"):
            strip = torch.cat(list(pictures[side][start : start + columns]), 2)
            strips += [strip, torch.ones(3, 2, strip.shape[2])]
        strips.append(torch.ones(3, 6, strip.shape[2]))
    sheet = to_image(torch.cat(strips[:-1], 1))
    save_image(sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC), path)


def write_sheet(
    pipe: Any, path: Path, *, count: int, steps: int, guidance_scale: float, seed: int, columns: int = 8
) -> int:
    """Write a sheet of pictures from held-out prompts; wrong ones have a red edge. Return how many are right."""
    make_folder(path.parent)
    prompts = held_out_prompts(count)
    options: dict[str, Any] = {"seeds": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    pictures = generate(pipe, [p.prompt for p in prompts], batch_size=48, **options).tensor
    right = [check(d, p.metadata()) is None for d, p in zip(judge(pictures), prompts, strict=True)]
    for picture, good in zip(pictures, right, strict=True):
        if not good:
            edge = torch.ones(1, *picture.shape[1:], dtype=torch.bool)
            edge[:, 1:-1, 1:-1] = False
            picture[edge.expand_as(picture)] = 0.0
            picture[:1][edge] = 0.9
    blank = torch.ones(-count % columns, *pictures.shape[1:])
    height, width = pictures.shape[2:]
    grid = torch.cat([pictures, blank]).reshape(-1, columns, 3, height, width)
    sheet = to_image(grid.permute(2, 0, 3, 1, 4).reshape(3, -1, columns * width))
    save_image(sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC), path)
    return sum(right)
