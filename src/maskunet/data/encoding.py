"""Pictures of a user's data set as cached latents: resized, cropped, encoded once and kept in a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..errors import DataError, first_line
from ..relaxation import derive_seed
from .images import ImageCaptions
from .latents import CachedLatents, encode_pictures

logger = logging.getLogger(__name__)


def encode_images(
    pipe: Any,
    images: ImageCaptions,
    *,
    resolution: int = 512,
    center_crop: bool = True,
    random_flip: bool = False,
    batch_size: int = 8,
    max_samples: int | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CachedLatents:
    """Resize, crop and encode pictures with a pipeline's autoencoder; say in the log what was left out.

    Args:
        pipe: a pipeline with a `vae`.
        images: pictures with captions.
        resolution: height and width to encode, in pixels; the shorter side of a picture is resized to it.
        center_crop: crop in the middle; else anywhere, by the seed and the row's number.
        random_flip: mirror every other picture, by the seed and the row's number.
        batch_size: pictures a call of the autoencoder.
        max_samples: use so many pictures, the first that can be used; None for all.
        cache_dir: folder to keep the result in, and to take it from when data, settings and autoencoder are the same.
        seed: seed of crops and flips.
        progress: show a progress bar.

    Raises:
        DataError: a setting is out of range, no picture can be used, or the cache cannot be written.
    """
    factor = pipe.vae_scale_factor
    if resolution < 1 or resolution % factor:
        raise DataError(f"expected a resolution that is a multiple of {factor} for this pipeline, got {resolution}")
    if batch_size < 1 or (max_samples is not None and max_samples < 1):
        raise DataError(f"expected batch_size and max_samples of at least 1, got {batch_size} and {max_samples}")
    path = None
    if cache_dir is not None:
        settings = (images.fingerprint, resolution, center_crop, random_flip, max_samples, seed, _weights(pipe.vae))
        path = Path(cache_dir).expanduser() / f"{hashlib.sha256(repr(settings).encode()).hexdigest()[:32]}.safetensors"
        _check_folder(path.parent)  # now, not after hours of encoding
        if (kept := _read(path)) is not None:
            data, images.skipped = kept
            _report(images, len(data))
            return replace(data, source=images.source)
    means, stds, captions, ids = [], [], [], []
    total = min((n for n in (images.count, max_samples) if n is not None), default=None)
    rows = itertools.islice(images.numbered(), max_samples)
    with tqdm(total=total, desc="encode pictures", disable=not progress) as bar:
        while chunk := list(itertools.islice(rows, batch_size)):
            batch = []
            for index, picture, caption in chunk:
                crop, place = _crop(picture, resolution, center_crop, random_flip, derive_seed(seed, index))
                batch.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous())
                captions.append(caption)
                ids.append((picture.height, picture.width, *place, resolution, resolution))
            mean, std = encode_pictures(pipe.vae, torch.stack(batch).float() / 255)
            means.append(mean)
            stds.append(std)
            bar.update(len(chunk))
    if not captions:
        raise DataError(
            f"expected pictures with captions in {images.source}, all {images.skipped.total()} rows were skipped: "
            f"{_counts(images)}; check the files and the columns"
        )
    _report(images, len(captions))
    time_ids = torch.tensor(ids, dtype=torch.float32)
    data = CachedLatents(torch.cat(means), torch.cat(stds), tuple(captions), time_ids, images.source)
    if path is not None:
        _write(path, data, images.skipped)
    return data


def _crop(
    picture: Image.Image, resolution: int, center: bool, flip: bool, seed: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Resize and crop a picture; return it with the top and left of the crop in the resized and mirrored picture."""
    draw = random.Random(seed)
    where, mirrored = (draw.random(), draw.random()), draw.random() < 0.5 and flip
    scale = resolution / min(picture.size)
    width, height = (max(resolution, round(side * scale)) for side in picture.size)
    top, left = (
        round(spare / 2) if center else int(part * (spare + 1))
        for spare, part in zip((height - resolution, width - resolution), where, strict=True)
    )
    # Only what the crop shows is resized, so that a picture of extreme shape does not fill the memory.
    start = width - resolution - left if mirrored else left
    x, y = picture.width / width, picture.height / height
    right, bottom = min((start + resolution) * x, picture.width), min((top + resolution) * y, picture.height)
    crop = picture.resize((resolution, resolution), Image.Resampling.LANCZOS, (start * x, top * y, right, bottom))
    return (ImageOps.mirror(crop) if mirrored else crop), (top, left)


def _counts(images: ImageCaptions) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in images.skipped.most_common()) or "none"


def _report(images: ImageCaptions, used: int) -> None:
    if skipped := images.skipped.total():
        logger.warning("skipped %d of %d rows of %s: %s", skipped, used + skipped, images.source, _counts(images))


def _weights(vae: Any) -> str:
    """Return a SHA-256 of an autoencoder's parameters and of how its latents are scaled."""
    config = [getattr(vae.config, key, None) for key in ("shift_factor", "scaling_factor", "force_upcast")]
    digest = hashlib.sha256(repr(config).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"expected a cache_dir that can be written, got {folder}: {first_line(error)}") from error


def _read(path: Path) -> tuple[CachedLatents, Counter[str]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            texts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        captions, skipped = json.loads(texts["captions"]), json.loads(texts["skipped"])
        return CachedLatents(captions=tuple(captions), **tensors), Counter(skipped)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("cannot use the cache %s (%s), encoding again", path, first_line(error))
        return None


def _write(path: Path, data: CachedLatents, skipped: Counter[str]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # processes of one run may all be writing it
    tensors = {
        key: value.contiguous() for key in ("mean", "std", "time_ids") if (value := getattr(data, key)) is not None
    }
    try:
        save_file(tensors, part, {"captions": json.dumps(data.captions), "skipped": json.dumps(skipped)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"expected a cache that can be written, {path} cannot be: {first_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)
