"""Images of a data set as cached latents: resized, cropped, encoded once and kept in a file."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError, SettingError
from ..files import make_folder
from .buckets import STEP_LATENTS, bucket_sizes
from .cache import EncodedParts, PartStore, read_cache, write_cache
from .cropping import Cropper, Size
from .images import ImageCaptions
from .latents import CachedLatents, encode_posterior
from .scaling import has_statistics, uses_statistics

logger = logging.getLogger(__name__)

#: Batches in one part of an encoding, the most that is lost when it is stopped.
_PART_BATCHES = 32


def encode_images(
    pipe: Any,
    images: ImageCaptions,
    *,
    resolution: int = 512,
    center_crop: bool = True,
    random_flip: bool = False,
    aspect_ratio_buckets: bool = False,
    batch_size: int = 8,
    max_samples: int | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CachedLatents:
    """Resize, crop and encode images with a pipeline's autoencoder; skipped rows are logged by reason.

    With a `cache_dir`, an encoding that was stopped goes on where it was.

    Args:
        pipe: a pipeline with a `vae`.
        images: images with captions.
        resolution: height and width of the crops, in pixels; the shorter side of an image is resized to it.
        center_crop: crop the centre; else a random part, by the seed and the row's number.
        random_flip: mirror half of the images, by the seed and the row's number.
        aspect_ratio_buckets: crop each image to the bucket with the nearest aspect ratio, not to the square. Buckets have
            nearly the square's area, and sides that are multiples of 8 latents (64 pixels in Stable Diffusion).
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
    sizes = bucket_sizes(resolution, STEP_LATENTS * factor) if aspect_ratio_buckets else ((resolution, resolution),)
    encoder = _Encoder(pipe, Cropper(sizes, center_crop, random_flip, seed), aspect_ratio_buckets, batch_size)
    if cache_dir is None:
        data = encoder.encode(images, max_samples, progress)
    else:
        settings: dict[str, Any] = {
            "data set": images.fingerprint,
            "resolution": resolution,
            "center_crop": center_crop,
            "random_flip": random_flip,
            "max_samples": max_samples,
            "seed": seed,
            "autoencoder": _hash_vae(pipe),
        }
        if aspect_ratio_buckets:  # without them, a file has the name that earlier versions gave it
            settings["aspect_ratio_buckets"] = sizes
        data = encoder.encode_once(images, max_samples, progress, Path(cache_dir).expanduser(), settings)
    _log_skipped(images, len(data))
    return replace(data, source=images.source)


@dataclass(frozen=True)
class _Encoder:
    """Encodes images part by part; an image is in the same batch whether the encoding was stopped or not.

    Args:
        pipe: a pipeline with a `vae`.
        cropper: crops the images.
        is_sized: keep each image's size, also if all have the same.
        batch_size: images per call of the autoencoder.
    """

    pipe: Any
    cropper: Cropper
    is_sized: bool
    batch_size: int

    def encode_once(
        self,
        images: ImageCaptions,
        max_samples: int | None,
        progress: bool,
        folder: Path,
        settings: dict[str, Any],
    ) -> CachedLatents:
        """Encode images, or read what an earlier call or another process has encoded.

        Args:
            images: images with captions.
            max_samples: use the first N readable images; None for all.
            progress: show a progress bar.
            folder: folder of the cache.
            settings: everything that the result depends on.

        Raises:
            DataError: no image can be used, or the cache cannot be written.
        """
        name = hashlib.sha256(repr(tuple(settings.values())).encode()).hexdigest()[:32]
        path = folder / f"{name}.safetensors"
        make_folder(folder)  # an error now is better than one after hours of encoding
        store = PartStore(path, {"source": images.source, "aspect_ratio_buckets": False} | settings)
        cached = read_cache(path)
        if cached is None:
            with store.locked() as has_waited:
                cached = read_cache(path) if has_waited else None
                if cached is None:
                    data = self.encode(images, max_samples, progress, store)
                    cached = data, images.skipped
                    write_cache(path, *cached)
                store.delete()
        data, images.skipped = cached
        return data

    def encode(
        self, images: ImageCaptions, max_samples: int | None, progress: bool, store: PartStore | None = None
    ) -> CachedLatents:
        """Encode images from where a store of parts ends, and store the parts that are complete.

        Args:
            images: images with captions.
            max_samples: use the first N readable images; None for all.
            progress: show a progress bar.
            store: the store; None to keep no parts.

        Raises:
            DataError: no image can be used, or a part cannot be written.
        """
        done = EncodedParts() if store is None else store.read()
        images.skipped = Counter(done.skipped)
        parts, first_row = list(done.parts), done.next_row
        count = sum(map(len, parts))
        part_size = _PART_BATCHES * self.batch_size
        limit = None if max_samples is None else max(0, max_samples - count)
        rows = itertools.islice(images.numbered(first_row, done.skipped), limit)
        total = min((n for n in (images.count, max_samples) if n is not None), default=None)
        with tqdm(total=total, initial=count, desc="encode images", disable=not progress) as bar:
            while (part := self._encode_part(itertools.islice(rows, part_size), bar)) is not None:
                data, last_row = part
                # The last part, if it is not full, goes straight to the result.
                if store is not None and len(data) == part_size:
                    store.append(len(parts), data, range(first_row, last_row + 1), images.skipped)
                parts.append(data)
                first_row = last_row + 1
        if not parts:
            raise DataError(
                f"expected images with captions in {images.source}, all {images.skipped.total()} rows were skipped: "
                f"{_skip_reasons(images)}; check the files and the columns"
            )
        return CachedLatents.join(parts)

    def _encode_part(self, rows: Iterator[tuple[int, Image.Image, str]], bar: Any) -> tuple[CachedLatents, int] | None:
        """Encode rows in batches of one size each; return them and the last row's number, or None without rows."""
        captions: list[str] = []
        time_ids: list[tuple[int, ...]] = []
        posteriors: dict[int, tuple[Tensor, Tensor]] = {}
        batches: dict[Size, list[tuple[int, Tensor]]] = {}

        def finish_batch(size: Size) -> None:
            indices, crops = zip(*batches.pop(size), strict=True)
            in_unit_range = torch.stack(crops).float() / 255
            means, stds = encode_posterior(self.pipe.vae, in_unit_range, statistics=uses_statistics(self.pipe))
            posteriors.update(zip(indices, zip(means, stds, strict=True), strict=True))
            bar.update(len(crops))

        last_row = 0
        for last_row, image, caption in rows:
            crop, ids = self.cropper(image, last_row)
            size = (crop.shape[1], crop.shape[2])
            batches.setdefault(size, []).append((len(captions), crop))
            captions.append(caption)
            time_ids.append(ids)
            if len(batches[size]) == self.batch_size:
                finish_batch(size)
        for size in list(batches):
            finish_batch(size)
        if not captions:
            return None
        means, stds = zip(*(posteriors[i] for i in range(len(captions))), strict=True)
        sizes = None
        if self.is_sized:
            sizes = torch.tensor([mean.shape[-2:] for mean in means])
            mean, std = (torch.cat([value.flatten() for value in values]) for values in (means, stds))
        else:
            mean, std = torch.stack(means), torch.stack(stds)
        ids_tensor = torch.tensor(time_ids, dtype=torch.float32)
        return CachedLatents(mean, std, tuple(captions), ids_tensor, sizes=sizes), last_row


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
