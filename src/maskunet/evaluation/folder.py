"""Pictures in a folder: generated shard by shard and resumably, read in batches, measured against another folder.

Picture i is `000000.png` with `000000.json` beside it: prompt, seed and settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError
from ..metrics.distances import frechet_distance, gaussian_distance, kernel_distance, precision_recall
from ..sampling.generation import pipeline_side
from .features import Features
from .image_jobs import Shot, make_missing

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def generate_folder(
    pipe: Any,
    prompts: Sequence[str],
    folder: Path,
    *,
    settings: dict[str, Any],
    seed: int = 0,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
    **options: Any,
) -> int:
    """Generate one picture for each prompt into a folder; pictures that are there already are kept.

    Args:
        pipe: a Stable Diffusion pipeline, with or without masks.
        prompts: N captions.
        folder: where to.
        settings: written beside each picture.
        seed: picture i starts from the noise of `seed + i`.
        batch_size: prompts a call.
        rank, world: this process makes pictures i with i mod world = rank.
        progress: show a progress bar.
        options: passed to `generate`.

    Returns:
        How many pictures this process made.

    Raises:
        DataError: the folder cannot be written, or holds pictures of other prompts or settings.
    """
    names = [folder / f"{i:06d}" for i in range(len(prompts))]
    shots = [
        Shot(name.with_suffix(".png"), name.with_suffix(".json"), prompt, seed + i)
        for i, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]
    return make_missing(
        pipeline_side(pipe, **options),
        shots,
        settings=settings | options,
        batch_size=batch_size,
        rank=rank,
        world=world,
        progress=progress,
    )


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of their names.

    Raises:
        DataError: there are none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not found:
        raise DataError(f"expected a folder with pictures ({', '.join(sorted(_SUFFIXES))}), got {folder}")
    return found


def prompts_of(files: Sequence[Path]) -> list[str] | None:
    """Return the prompts beside pictures; None where one is missing."""
    beside = [f.with_suffix(".json") for f in files]
    if not all(b.is_file() for b in beside):
        return None
    return [json.loads(b.read_text())["prompt"] for b in beside]


def read_pictures(files: Sequence[Path], resolution: int, batch_size: int = 64) -> Iterator[Tensor]:
    """Yield batches (B, 3, resolution, resolution) in [0, 1]: shorter side resized (Lanczos), centre cropped.

    Raises:
        DataError: a file cannot be read.
    """
    for start in range(0, len(files), batch_size):
        batch = []
        for file in files[start : start + batch_size]:
            try:
                with Image.open(file) as opened:
                    image = opened.convert("RGB")
            except (OSError, UnidentifiedImageError, SyntaxError) as error:
                raise DataError(f"expected a picture, could not read {file}: {error}") from error
            if image.size != (resolution, resolution):
                scale = resolution / min(image.size)
                width, height = (max(resolution, round(d * scale)) for d in image.size)
                image = image.resize((width, height), Image.Resampling.LANCZOS)
                left, top = (width - resolution) // 2, (height - resolution) // 2
                image = image.crop((left, top, left + resolution, top + resolution))
            batch.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        yield torch.stack(batch).float() / 255


def measure(
    generated: Path,
    reference: Path | None,
    features: Features,
    *,
    resolution: int,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, float]:
    """Measure a folder of pictures in one feature space.

    Args:
        generated: folder of generated pictures.
        reference: folder of real ones; without it only the CLIP score is measured.
        features: the feature space.
        resolution: both sides are brought to this many pixels first.
        prompts: captions of the generated pictures, for the CLIP score; those beside the pictures if None.
        batch_size: pictures a call.
        progress: show progress bars.

    Returns:
        `fid`, `kid` and `kid_std`, `precision`, `recall`, `cmmd`; `clip_score` (mean cosine) where the space knows
        text; `n` and `n_reference`.

    Raises:
        DataError: nothing to measure, or a picture that cannot be read.
    """

    def of(files: Sequence[Path]) -> Tensor:
        batches = read_pictures(files, resolution, batch_size)
        total = -(-len(files) // batch_size)
        return torch.cat([features(b) for b in tqdm(batches, "features", total, disable=not progress, leave=False)])

    files = picture_files(generated)
    mine = of(files)
    result: dict[str, float] = {"n": len(files)}
    captions = list(prompts) if prompts is not None else prompts_of(files)
    if captions is not None and (texts := features.texts(captions[:1])) is not None:
        if len(captions) != len(files):
            raise DataError(f"expected a prompt for each of {len(files)} pictures, got {len(captions)}")
        chunks = [features.texts(captions[i : i + batch_size]) for i in range(0, len(captions), batch_size)]
        texts = torch.cat([c for c in chunks if c is not None])
        result["clip_score"] = float((mine * texts).sum(-1).mean())
    if reference is not None:
        theirs_files = picture_files(reference)
        theirs = of(theirs_files)
        kid, spread = kernel_distance(mine, theirs)
        precision, recall = precision_recall(mine, theirs)
        result |= {
            "n_reference": len(theirs_files),
            "fid": frechet_distance(mine, theirs),
            "kid": kid,
            "kid_std": spread,
            "cmmd": gaussian_distance(mine, theirs),
            "precision": precision,
            "recall": recall,
        }
    return result
