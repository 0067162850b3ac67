"""Images of a data set as cached latents: resized, cropped, encoded once and kept in a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
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

from ..errors import DataError, SettingError, first_line
from ..files import make_folder, save_whole
from ..relaxation import derive_seed
from .images import ImageCaptions
from .latents import CachedLatents, encode_posterior
from .scaling import has_statistics, uses_statistics

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
    """Resize, crop and encode images with a pipeline's autoencoder; skipped rows are logged by reason.

    Args:
        pipe: a pipeline with a `vae`.
        images: images with captions.
        resolution: height and width of the crops, in pixels; the shorter side of an image is resized to it.
        center_crop: crop the centre; else a random part, by the seed and the row's number.
        random_flip: mirror half of the images, by the seed and the row's number.
        batch_size: images per call of the autoencoder.
        max_samples: use the first N readable images; None for all.
        cache_dir: folder that keeps the result; it is read from there when data, settings and autoencoder are the same.
        seed: seed of crops and flips.
        progress: show a progress bar.

    Raises:
        SettingError: a setting is out of range.
        DataError: no image can be used, or the cache cannot be written.
    """
    factor = pipe.vae_scale_factor
    if resolution < 1 or resolution % factor:
        raise SettingError(f"expected resolution to be a multiple of {factor} for this pipeline, got {resolution}")
    for name, value in (("batch_size", batch_size), ("max_samples", max_samples)):
        if value is not None and value < 1:
            raise SettingError(f"expected {name} to be an integer >= 1, got {value}")
    path = None
    if cache_dir is not None:
        settings = (images.fingerprint, resolution, center_crop, random_flip, max_samples, seed, _hash_vae(pipe))
        path = Path(cache_dir).expanduser() / f"{hashlib.sha256(repr(settings).encode()).hexdigest()[:32]}.safetensors"
        make_folder(path.parent)  # an error now is better than one after hours of encoding
        if (cached := _read_cache(path)) is not None:
            data, images.skipped = cached
            _log_skipped(images, len(data))
            return replace(data, source=images.source)
    means, stds, captions, time_ids = [], [], [], []
    total = min((n for n in (images.count, max_samples) if n is not None), default=None)
    rows = itertools.islice(images.numbered(), max_samples)
    with tqdm(total=total, desc="encode images", disable=not progress) as bar:
        while chunk := list(itertools.islice(rows, batch_size)):
            crops = []
            for row, image, caption in chunk:
                crop, top_left = _crop(image, resolution, center_crop, random_flip, derive_seed(seed, row))
                crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous())
                captions.append(caption)
                time_ids.append((image.height, image.width, *top_left, resolution, resolution))
            crops_in_unit_range = torch.stack(crops).float() / 255
            mean, std = encode_posterior(pipe.vae, crops_in_unit_range, statistics=uses_statistics(pipe))
            means.append(mean)
            stds.append(std)
            bar.update(len(chunk))
    if not captions:
        raise DataError(
            f"expected images with captions in {images.source}, all {images.skipped.total()} rows were skipped: "
            f"{_skip_reasons(images)}; check the files and the columns"
        )
    _log_skipped(images, len(captions))
    ids = torch.tensor(time_ids, dtype=torch.float32)
    data = CachedLatents(torch.cat(means), torch.cat(stds), tuple(captions), ids, images.source)
    if path is not None:
        _write_cache(path, data, images.skipped)
    return data


def _crop(
    image: Image.Image, resolution: int, center: bool, flip: bool, seed: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Resize and crop an image; return it with the top and left of the crop in the resized and mirrored image."""
    generator = random.Random(seed)
    shares, is_mirrored = (generator.random(), generator.random()), generator.random() < 0.5 and flip
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    top, left = (
        round(margin / 2) if center else int(share * (margin + 1))
        for margin, share in zip((height - resolution, width - resolution), shares, strict=True)
    )
    # Only the cropped part is resized, so that an image of extreme shape does not fill the memory.
    start = width - resolution - left if is_mirrored else left
    x, y = image.width / width, image.height / height
    right, bottom = min((start + resolution) * x, image.width), min((top + resolution) * y, image.height)
    crop = image.resize((resolution, resolution), Image.Resampling.LANCZOS, (start * x, top * y, right, bottom))
    return (ImageOps.mirror(crop) if is_mirrored else crop), (top, left)


def _skip_reasons(images: ImageCaptions) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in images.skipped.most_common()) or "none"


def _log_skipped(images: ImageCaptions, used: int) -> None:
    if skipped := images.skipped.total():
        logger.warning(
            "skipped %d of %d rows of %s: %s", skipped, used + skipped, images.source, _skip_reasons(images)
        )


def _hash_vae(pipe: Any) -> str:
    """Return a SHA-256 of an autoencoder's parameters and of how its latents are scaled."""
    vae = pipe.vae
    config = [getattr(vae.config, key, None) for key in ("shift_factor", "scaling_factor", "force_upcast")]
    if uses_statistics(pipe) and has_statistics(vae):
        config += [list(vae.config.latents_mean), list(vae.config.latents_std)]
    digest = hashlib.sha256(repr(config).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_cache(path: Path) -> tuple[CachedLatents, Counter[str]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        captions, skipped = json.loads(metadata["captions"]), json.loads(metadata["skipped"])
        return CachedLatents(captions=tuple(captions), **tensors), Counter(skipped)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("cannot read the cache %s (%s), encoding again", path, first_line(error))
        return None


def _write_cache(path: Path, data: CachedLatents, skipped: Counter[str]) -> None:
    tensors = {
        key: value.contiguous() for key in ("mean", "std", "time_ids") if (value := getattr(data, key)) is not None
    }
    metadata = {"captions": json.dumps(data.captions), "skipped": json.dumps(skipped)}
    try:
        save_whole(path, lambda part: save_file(tensors, part, metadata))
    except SafetensorError as error:
        raise DataError(f"expected a cache that can be written, got {path}: {first_line(error)}") from error
