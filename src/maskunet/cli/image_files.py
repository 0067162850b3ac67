"""Sheets of images, and images side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..files import make_folder
from ..images import save_png, to_pil
from ..metrics.geneval_rules import check
from ..sampling import Side, generate
from ..shapes.judge import judge
from ..shapes.scenes import held_out_prompts

_GAP = 4  # pixels between two images
_WRONG = (0.9, 0.0, 0.0)  # colour of the edge of a wrong image


def beside(base: Side, masked: Side) -> Side:
    """Return a side whose images (N, 3, H, 2 W + 4) show the base on the left and the masked image on the right.

    Args:
        base: generates the left images.
        masked: generates the right images.
    """

    def run(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        right = masked(prompts, seeds)
        left = base(prompts, seeds)
        return torch.cat([left, torch.ones(*right.shape[:3], _GAP), right], 3)

    return run


def write_comparison(images: Mapping[str, Tensor], path: Path, columns: int = 12, rows: int = 3) -> None:
    """Write a sheet of the first images of both sides, each row of base above its row of masked, at twice the size.

    Args:
        images: images (N, 3, H, W) in [0, 1] of "base" and "masked".
        path: the PNG file.
        columns: images per row.
        rows: rows per side.
    """
    columns = min(columns, len(images["base"]))
    strips = []
    for start in range(0, min(rows, len(images["base"]) // columns) * columns, columns):
        for side in ("base", "masked"):
            strip = torch.cat(list(images[side][start : start + columns]), 2)
            strips += [strip, torch.ones(3, 2, strip.shape[2])]
        strips.append(torch.ones(3, 6, strip.shape[2]))
    _save_doubled(torch.cat(strips[:-1], 1), path)


def write_sheet(
    pipe: Any, path: Path, *, count: int, steps: int, guidance_scale: float, seed: int, columns: int = 8
) -> int:
    """Write a sheet of images from held-out prompts; images that do not match their prompt have a red edge.

    Args:
        pipe: the pipeline, of the shapes world.
        path: the PNG file.
        count: how many prompts.
        steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
        seed: seed of the first image.
        columns: images per row.

    Returns:
        Number of images that match their prompt.
    """
    make_folder(path.parent)
    prompts = held_out_prompts(count)
    options: dict[str, Any] = {"seeds": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    images = generate(pipe, [prompt.prompt for prompt in prompts], batch_size=48, **options).tensor
    is_correct = [check(d, p.metadata()) is None for d, p in zip(judge(images), prompts, strict=True)]
    height, width = images.shape[2:]
    edge = torch.ones(height, width, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    for image, correct in zip(images, is_correct, strict=True):
        if not correct:
            image[:, edge] = torch.tensor(_WRONG)[:, None]
    blank = torch.ones(-count % columns, 3, height, width)
    grid = torch.cat([images, blank]).reshape(-1, columns, 3, height, width)
    _save_doubled(grid.permute(2, 0, 3, 1, 4).reshape(3, -1, columns * width), path)
    return sum(is_correct)


def _save_doubled(image: Tensor, path: Path) -> None:
    sheet = to_pil(image[None])[0]
    save_png(sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC), path)
