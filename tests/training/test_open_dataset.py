"""Data sets by name: the worlds of the bundled model, and a user's images with a part held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from maskunet.data import encode_images, open_images
from maskunet.errors import DataError, SettingError
from maskunet.training import TrainConfig, open_dataset
from maskunet.zoo.dataset import encode_world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of 20 by 30 pixels with captions in a column of their own."""
    path = tmp_path / "images"
    path.mkdir()
    lines = []
    for i in range(20):
        values = np.random.default_rng(i).integers(0, 256, (30, 20, 3), dtype=np.uint8)
        Image.fromarray(values).save(path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"number {i}"}) + "\n")
    (path / "metadata.jsonl").write_text("".join(lines))
    return path


@pytest.mark.parametrize(("samples", "held_out"), [(1, 1), (64, 2)])
def test_the_last_samples_are_held_out_a_tenth_at_most(
    pipe: StableDiffusionPipeline, folder: Path, samples: int, held_out: int
) -> None:
    config = TrainConfig(validation_samples=samples)
    train, validation = open_dataset(pipe, folder, config, caption_column="caption", progress=False)
    assert validation is not None
    assert train.captions + validation.captions == tuple(f"number {i}" for i in range(20))
    assert len(validation) == held_out


def test_nothing_is_held_out_without_validation_or_of_few_images(pipe: StableDiffusionPipeline, folder: Path) -> None:
    options: dict[str, Any] = {"caption_column": "caption", "progress": False}
    train, validation = open_dataset(pipe, folder, TrainConfig(validation_samples=0), **options)
    assert (len(train), validation) == (20, None)
    train, validation = open_dataset(pipe, folder, TrainConfig(), max_samples=9, **options)
    assert (len(train), validation) == (9, None)


def test_options_reach_the_encoding(pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(validation_samples=0, seed=5)
    crops: dict[str, Any] = {"center_crop": False, "random_flip": True, "max_samples": 4}
    data, _ = open_dataset(
        pipe, str(folder), config, caption_column="caption", cache_dir=tmp_path / "cache", progress=False, **crops
    )
    images = open_images(folder, caption_column="caption")
    expected = encode_images(pipe, images, resolution=16, seed=5, progress=False, **crops)
    assert torch.equal(data.mean, expected.mean)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    large, _ = open_dataset(pipe, folder, config, resolution=24, caption_column="caption", progress=False)
    assert large.mean.shape[-2:] == (12, 12)


def test_a_bundled_world_holds_out_other_scenes(pipe: StableDiffusionPipeline) -> None:
    train, validation = open_dataset(
        pipe, "shapes-art", TrainConfig(validation_samples=3), max_samples=5, progress=False
    )
    expected = encode_world(pipe, "shapes-art", train_samples=5, held_out_samples=3)
    assert validation is not None
    for data, other in zip((train, validation), expected, strict=True):
        assert torch.equal(data.mean, other.mean)
        assert data.captions == other.captions


def test_wrong_sources_are_one_line(pipe: StableDiffusionPipeline, folder: Path) -> None:
    with pytest.raises(SettingError, match=r"expected a data set .*got int"):
        open_dataset(pipe, 3, TrainConfig())  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="max_samples to be an integer >= 1, got 0"):
        open_dataset(pipe, "shapes", TrainConfig(), max_samples=0)
    with pytest.raises(DataError, match=r"'text'.*got caption, file_name; choose caption_column"):
        open_dataset(pipe, folder, TrainConfig())
