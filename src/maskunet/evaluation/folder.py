"""Folders of images: generated in parallel and resumed, measured against a folder of real images.

Image i is `000000.png`, with `000000.json` beside it: prompt, seed and settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError
from ..files import read_object
from ..metrics.distances import (
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    precision_recall,
    require_finite,
)
from ..sampling.generation import pipeline_side
from .features import Features
from .image_jobs import ImageJob, generate_missing
from .image_reader import read_images

#: Precision and recall need the third neighbour of every image.
MIN_IMAGES = 4


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


def prompts_beside(files: Sequence[Path]) -> list[str] | None:
    """Return the prompts in the records beside images; None if no image has one.

    Args:
        files: image files.

    Raises:
        DataError: some images have no record, or a record has no prompt.
    """
    records = [file.with_suffix(".json") for file in files]
    missing = [file for file, record in zip(files, records, strict=True) if not record.is_file()]
    if len(missing) == len(files):
        return None
    if missing:
        raise DataError(
            f"expected a record beside every image or beside none, {len(missing)} of {len(files)} have none, such as "
            f"{missing[0]}; remove images that are left over, or give the prompts (--prompts-file)"
        )
    return [_prompt(record) for record in records]


def _prompt(record: Path) -> str:
    prompt = read_object(record, "an image's record with its prompt").get("prompt")
    if not isinstance(prompt, str):
        raise DataError(
            f"expected a text 'prompt' in {record}, got {prompt!r:.80}; give the prompts (--prompts-file), or remove it"
        )
    return prompt


def check_captions(captions: Sequence[str] | None, files: Sequence[Path]) -> None:
    """Refuse another number of captions than of images.

    Args:
        captions: captions of the images; None is fine.
        files: image files.

    Raises:
        DataError: the numbers differ.
    """
    if captions is not None and len(captions) != len(files):
        raise DataError(
            f"expected one prompt for each of {len(files)} images, got {len(captions)}; --limit N takes the first N"
        )


def check_reference(files: Sequence[Path], real_files: Sequence[Path] | None) -> None:
    """Refuse sets that are too small to be compared.

    Args:
        files: generated images.
        real_files: real images; None is fine.

    Raises:
        DataError: a set has fewer than four images.
    """
    if real_files is not None and min(len(files), len(real_files)) < MIN_IMAGES:
        raise DataError(
            f"expected at least {MIN_IMAGES} images on each side of a comparison, got {len(files)} and {len(real_files)} "
            "real ones; leave --reference out to measure the CLIP score alone"
        )


def measure_files(
    files: Sequence[Path],
    real_files: Sequence[Path] | None,
    features: Features,
    *,
    resolution: int,
    captions: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, float]:
    """Measure images in one feature space.

    Args:
        files: generated images.
        real_files: real images; without them only the CLIP score is measured.
        features: the feature space.
        resolution: both sets are resized to this many pixels per side first, unless the space reads them in its own way.
        captions: captions of the generated images, for the CLIP score.
        batch_size: images per call.
        progress: show progress bars.

    Returns:
        `fid`, `kid` and `kid_std`, `precision`, `recall`, `cmmd`; `clip_score` (mean cosine) if the space has text
        features; `n` and `n_reference`. A space with `metrics` of its own has those alone.

    Raises:
        DataError: an image cannot be read, its features are not finite, or the sets are too small.
    """

    def compute(files: Sequence[Path], name: str) -> Tensor:
        batches = read_images(files, features.resolution or resolution, batch_size, features.fit)
        total = -(-len(files) // batch_size)
        bar = tqdm(batches, "features", total, disable=not progress, leave=False)
        return require_finite(torch.cat([features(batch) for batch in bar]), name, files)

    def has(metric: str) -> bool:
        return features.metrics is None or metric in features.metrics

    check_captions(captions, files)
    check_reference(files, real_files)
    images = compute(files, "the measured images")
    metrics: dict[str, float] = {"n": len(files)}
    if captions is not None and has("clip_score") and features.texts(captions[:1]) is not None:
        chunks = [features.texts(captions[i : i + batch_size]) for i in range(0, len(captions), batch_size)]
        texts = require_finite(torch.cat([c for c in chunks if c is not None]), "the prompts", captions)
        metrics["clip_score"] = float((images * texts).sum(-1).mean())
    if real_files is None:
        return metrics
    real = compute(real_files, "the reference")
    metrics["n_reference"] = len(real_files)
    if has("cmmd"):
        metrics["cmmd"] = gaussian_distance(images, real)
    if has("fid"):
        metrics["fid"] = frechet_distance(images, real)
    if has("kid"):
        metrics["kid"], metrics["kid_std"] = kernel_distance(images, real)
    if has("precision"):
        metrics["precision"], metrics["recall"] = precision_recall(images, real)
    return metrics
