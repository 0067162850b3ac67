"""Folders of images: generated in parallel and resumed, read in batches, measured against a folder of real images.

Image i is `000000.png`, with `000000.json` beside it: prompt, seed and settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError
from ..metrics.distances import frechet_distance, gaussian_distance, kernel_distance, precision_recall
from ..sampling.generation import pipeline_side
from .features import Features
from .image_jobs import ImageJob, generate_missing, read_image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def folder_jobs(prompts: Sequence[str], folder: Path, seed: int) -> list[ImageJob]:
    """Return the images of a folder, one per prompt.

    Args:
        prompts: N captions.
        folder: the folder.
        seed: image i starts from the noise of `seed + i`.
    """
    return [
        ImageJob(folder / f"{i:06d}.png", folder / f"{i:06d}.json", prompt, seed + i)
        for i, prompt in enumerate(prompts)
    ]


def generate_folder(
    pipe: Any,
    prompts: Sequence[str],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
    **options: Any,
) -> int:
    """Generate one image per prompt into a folder; images that exist already are kept.

    Args:
        pipe: a Stable Diffusion pipeline, with or without masks.
        prompts: N captions.
        folder: receives the images.
        settings: written beside each image.
        seed: image i starts from the noise of `seed + i`.
        batch_size: prompts per call.
        rank: this process generates the images i with i mod world = rank.
        world: number of processes.
        progress: show a progress bar.
        options: passed to `generate`, and written beside each image.

    Returns:
        How many images this process generated.

    Raises:
        DataError: the folder cannot be written, or holds images of other prompts or settings.
    """
    return generate_missing(
        pipeline_side(pipe, **options),
        folder_jobs(prompts, folder, seed),
        settings=dict(settings) | options,
        batch_size=batch_size,
        rank=rank,
        world=world,
        progress=progress,
    )


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted by name.

    Args:
        folder: the folder.

    Raises:
        DataError: there are none.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not files:
        raise DataError(f"expected a folder with images ({', '.join(sorted(_SUFFIXES))}), got {folder}")
    return files


def prompts_beside(files: Sequence[Path]) -> list[str] | None:
    """Return the prompts in the records beside images; None if a record is missing.

    Args:
        files: image files.
    """
    records = [f.with_suffix(".json") for f in files]
    if not all(record.is_file() for record in records):
        return None
    return [json.loads(record.read_text())["prompt"] for record in records]


def read_images(files: Sequence[Path], resolution: int, batch_size: int = 64) -> Iterator[Tensor]:
    """Yield batches (B, 3, resolution, resolution) in [0, 1]: shorter side resized (Lanczos), centre cropped.

    Args:
        files: image files.
        resolution: pixels per side.
        batch_size: images per batch.

    Raises:
        DataError: a file cannot be read.
    """
    for start in range(0, len(files), batch_size):
        batch = []
        for file in files[start : start + batch_size]:
            image = read_image(file)
            if image.size != (resolution, resolution):
                scale = resolution / min(image.size)
                width, height = (max(resolution, round(d * scale)) for d in image.size)
                image = image.resize((width, height), Image.Resampling.LANCZOS)
                left, top = (width - resolution) // 2, (height - resolution) // 2
                image = image.crop((left, top, left + resolution, top + resolution))
            batch.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        yield torch.stack(batch).float() / 255


def measure_folder(
    generated: str | Path,
    reference: str | Path | None,
    features: Features,
    *,
    resolution: int,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, float]:
    """Measure a folder of images in one feature space.

    Args:
        generated: folder of generated images.
        reference: folder of real images; without it only the CLIP score is measured.
        features: the feature space.
        resolution: both sets are resized to this many pixels per side first.
        prompts: prompts of the generated images, for the CLIP score; those beside the images if None.
        batch_size: images per call.
        progress: show progress bars.

    Returns:
        `fid`, `kid` and `kid_std`, `precision`, `recall`, `cmmd`; `clip_score` (mean cosine) if the space has text
        features; `n` and `n_reference`.

    Raises:
        DataError: there is nothing to measure, or an image cannot be read.
    """

    def compute(files: Sequence[Path]) -> Tensor:
        batches = read_images(files, resolution, batch_size)
        total = -(-len(files) // batch_size)
        return torch.cat([features(b) for b in tqdm(batches, "features", total, disable=not progress, leave=False)])

    files = image_files(Path(generated))
    real_files = None if reference is None else image_files(Path(reference))
    images = compute(files)
    metrics: dict[str, float] = {"n": len(files)}
    captions = list(prompts) if prompts is not None else prompts_beside(files)
    if captions is not None and features.texts(captions[:1]) is not None:
        if len(captions) != len(files):
            raise DataError(f"expected one prompt for each of {len(files)} images, got {len(captions)}")
        chunks = [features.texts(captions[i : i + batch_size]) for i in range(0, len(captions), batch_size)]
        texts = torch.cat([c for c in chunks if c is not None])
        metrics["clip_score"] = float((images * texts).sum(-1).mean())
    if real_files is not None:
        real = compute(real_files)
        kid, kid_std = kernel_distance(images, real)
        precision, recall = precision_recall(images, real)
        metrics |= {
            "n_reference": len(real_files),
            "fid": frechet_distance(images, real),
            "kid": kid,
            "kid_std": kid_std,
            "cmmd": gaussian_distance(images, real),
            "precision": precision,
            "recall": recall,
        }
    return metrics
