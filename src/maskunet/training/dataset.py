"""Open a data set by name and encode it for training, with a part held out for validation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..data import CachedLatents, encode_images, open_images
from ..errors import SettingError
from ..zoo.dataset import TRAIN_SAMPLES, WORLDS, encode_world
from .config import TrainConfig


def open_dataset(
    pipe: Any,
    source: str | os.PathLike[str],
    config: TrainConfig,
    *,
    resolution: int | None = None,
    image_column: str = "image",
    caption_column: str = "text",
    split: str = "train",
    streaming: bool = False,
    center_crop: bool = True,
    random_flip: bool = False,
    aspect_ratio_buckets: bool = False,
    max_samples: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> tuple[CachedLatents, CachedLatents | None]:
    """Open and encode a data set.

    The last `config.validation_samples` of a user's images are held out, a tenth of them at most. A bundled data set holds
    out separate scenes.

    Args:
        pipe: the pipeline; its autoencoder encodes the images.
        source: "shapes", "shapes-art", a folder of images with captions, a folder of .parquet or .arrow files, one such
            file, or a hub id; see `data.open_images`.
        config: settings of the run; `validation_samples` and `seed` are used.
        resolution: height and width of the crops, in pixels; the model's own if None.
        image_column: column of the images.
        caption_column: column of the captions.
        split: split of the data set.
        streaming: read rows as they are needed, without a copy in the cache.
        center_crop: crop the centre; else a random part.
        random_flip: mirror half of the images.
        aspect_ratio_buckets: crop a user's images to buckets of nearly the resolution's area, by their aspect ratio.
        max_samples: use the first N readable images; all if None, and 6000 of a bundled data set.
        cache_dir: folder that keeps the encoded images, also the part that a stopped call has encoded.
        progress: show a progress bar.

    Returns:
        The samples to train on, and those held out, or None if there are too few.

    Raises:
        SettingError: `source` is of another type, or a setting is out of range.
        DataError: the data set cannot be opened, or holds no usable image.
    """
    if not isinstance(source, str | os.PathLike):
        raise SettingError(
            f"expected a data set as a folder, a hub id or one of {', '.join(WORLDS)}, got {type(source).__name__}"
        )
    if max_samples is not None and max_samples < 1:
        raise SettingError(f"expected max_samples to be an integer >= 1, got {max_samples}")
    if source in WORLDS:
        return encode_world(
            pipe,
            str(source),
            train_samples=max_samples or TRAIN_SAMPLES,
            held_out_samples=max(1, config.validation_samples),
            progress=progress,
        )
    images = open_images(
        source if isinstance(source, str) else Path(source),
        image_column=image_column,
        caption_column=caption_column,
        split=split,
        streaming=streaming,
    )
    data = encode_images(
        pipe,
        images,
        resolution=resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor,
        center_crop=center_crop,
        random_flip=random_flip,
        aspect_ratio_buckets=aspect_ratio_buckets,
        max_samples=max_samples,
        cache_dir=cache_dir,
        seed=config.seed,
        progress=progress,
    )
    held_out = min(config.validation_samples, len(data) // 10)
    return data.split(len(data) - held_out) if held_out else (data, None)
