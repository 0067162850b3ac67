"""Images as cached latents: crops, flips, limits, and the cache."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from image_folders import encoded, image_folder, noise_image, readable
from PIL import Image

from maskunet.data import CachedLatents, encode_images, encode_posterior, images, open_images
from maskunet.data.cropping import crop_image
from maskunet.errors import DataError


def test_a_bad_row_leaves_the_others_in_order(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = readable(40)
    rows[30] = ("30.png", b"no image", "number 30")
    dataset = open_images(image_folder(tmp_path / "set", rows))
    assert [number for number, _, _ in dataset.numbered()] == [i for i in range(40) if i != 30]
    data = encode_images(pipe, dataset, resolution=16, progress=False)
    assert data.captions == tuple(f"number {i}" for i in range(40) if i != 30)
    expected = encode_posterior(pipe.vae, tensor(centre_crop(noise_image(31))))[0]
    torch.testing.assert_close(data.mean[30:31].float(), expected.float(), atol=0.02, rtol=0.02)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def centre_crop(image: Image.Image) -> Image.Image:
    """The middle of a 20 x 30 image at 16 pixels, resized as a whole."""
    return image.resize((16, 24), Image.Resampling.LANCZOS).crop((0, 4, 16, 20))


def test_encoding_resizes_and_crops(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = [*readable(2), ("wide.png", encoded(noise_image(5, (50, 20))), "wide")]
    dataset = open_images(image_folder(tmp_path / "set", rows))
    data = encode_images(pipe, dataset, resolution=16, batch_size=2, progress=False)
    # 20 x 30 becomes 16 x 24, and 50 x 20 becomes 40 x 16: height, width, top, left, target height, target width.
    assert data.time_ids is not None
    assert data.time_ids.tolist() == [[30, 20, 4, 0, 16, 16]] * 2 + [[20, 50, 0, 12, 16, 16]]
    assert data.mean.shape == data.std.shape == (3, 4, 8, 8)
    wide = noise_image(5, (50, 20)).resize((40, 16), Image.Resampling.LANCZOS).crop((12, 0, 28, 16))
    for row, image in ((0, centre_crop(noise_image(0))), (1, centre_crop(noise_image(1))), (2, wide)):
        mean, std = encode_posterior(pipe.vae, tensor(image))
        torch.testing.assert_close(data.mean[row].float(), mean[0].float(), atol=0.02, rtol=0.02)
        torch.testing.assert_close(data.std[row].float(), std[0].float(), atol=0.02, rtol=0.02)
    assert data.captions == ("number 0", "number 1", "wide")


def test_images_of_extreme_shape_are_not_resized_whole(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    dataset = open_images(image_folder(tmp_path / "set", readable(1, (40000, 8))))
    data = encode_images(pipe, dataset, resolution=64, progress=False)
    assert data.time_ids is not None
    assert data.time_ids.tolist() == [[8, 40000, 0, 159968, 64, 64]]


def test_random_crops_and_flips_follow_the_seed(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    folder = image_folder(tmp_path / "set", readable(12, (20, 60)))

    def encode(seed: int, crop: bool = True, flip: bool = False, **options: Any) -> CachedLatents:
        settings = {"center_crop": not crop, "random_flip": flip, "seed": seed, "resolution": 16, "progress": False}
        return encode_images(pipe, open_images(folder), **settings | options)

    def tops(data: CachedLatents) -> list[float]:
        assert data.time_ids is not None
        return data.time_ids[:, 2].tolist()

    first, flipped = encode(0), encode(0, flip=True)
    assert tops(first) == tops(encode(0, batch_size=5)) == tops(flipped)
    assert tops(first) != tops(encode(1))
    assert len(set(tops(first))) > 5
    assert 0 <= min(tops(first)) <= max(tops(first)) <= 32
    assert torch.equal(flipped.mean, encode(0, flip=True).mean)
    for seed, data in ((0, encode(0, crop=False, flip=True)), (1, encode(1, crop=False, flip=True))):
        plain = encode(seed, crop=False)
        same = [torch.equal(a, b) for a, b in zip(plain.mean, data.mean, strict=True)]
        assert 0 < sum(same) < 12, "some are mirrored, others are not"
        assert tops(plain) == tops(data)
    # A row keeps its crop when earlier ones are skipped.
    (folder / "0.png").unlink()
    assert tops(encode(0)) == tops(first)[1:]


def test_mirrored_crops_are_mirrored_images(tmp_path: Path) -> None:
    wide = noise_image(0, (40, 16))
    for seed in range(20):
        crop, (top, left) = crop_image(wide, (16, 16), False, True, seed)
        plain, place = crop_image(wide, (16, 16), False, False, seed)
        assert (top, left) == place
        crop_as_is = wide.crop((left, 0, left + 16, 16))
        mirrored = wide.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((left, 0, left + 16, 16))
        assert np.array_equal(np.asarray(plain), np.asarray(crop_as_is))
        assert any(np.array_equal(np.asarray(crop), np.asarray(x)) for x in (crop_as_is, mirrored))


def test_settings_out_of_range_are_refused(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    dataset = open_images(image_folder(tmp_path / "set", readable(1)))
    for resolution in (15, 0, -2):
        with pytest.raises(DataError, match=f"multiple of 2.*got {resolution}"):
            encode_images(pipe, dataset, resolution=resolution)
    for options in ({"batch_size": 0}, {"max_samples": 0}):
        with pytest.raises(DataError, match="integer >= 1"):
            encode_images(pipe, dataset, resolution=16, **options)
    with pytest.raises(DataError, match="folder that can be written"):
        encode_images(pipe, dataset, resolution=16, cache_dir=tmp_path / "set" / "0.png")


def test_skipped_rows_are_logged(
    tmp_path: Path, pipe: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*readable(2), ("x.png", b"x", "x"), ("y.png", b"y", "y"), ("z.png", encoded(noise_image(0)), "")]
    dataset = open_images(image_folder(tmp_path / "set", rows))
    for _ in range(2):  # from the cache too
        caplog.clear()
        encode_images(pipe, dataset, resolution=16, progress=False, cache_dir=tmp_path / "cache")
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "skipped 3 of 5 rows" in record.message
        assert "2 unreadable image, 1 empty caption" in record.message
        assert dataset.skipped == {"unreadable image": 2, "empty caption": 1}


def test_nothing_usable_is_an_error_with_counts(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = [("x.png", b"x", "x"), ("y.png", None, "y"), ("z.png", encoded(noise_image(0)), "")]
    dataset = open_images(image_folder(tmp_path / "set", rows))
    with pytest.raises(DataError, match="all 3 rows were skipped: 2 unreadable image, 1 empty caption"):
        encode_images(pipe, dataset, resolution=16, progress=False, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_samples_can_be_limited(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = readable(6)
    rows[1] = ("1.png", b"x", "x")
    dataset = open_images(image_folder(tmp_path / "set", rows))
    data = encode_images(pipe, dataset, resolution=16, batch_size=2, max_samples=3, progress=False)
    assert data.captions == ("number 0", "number 2", "number 3")


def same(a: CachedLatents, b: CachedLatents) -> bool:
    assert a.time_ids is not None
    assert b.time_ids is not None
    pairs = ((a.mean, b.mean), (a.std, b.std), (a.time_ids, b.time_ids))
    return (a.captions, a.source) == (b.captions, b.source) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs
    )


def test_the_cache_is_used_and_rebuilt(
    tmp_path: Path, pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = readable(5)
    rows[2] = ("2.png", rows[2][1], "größer \N{SNOWMAN} \ud800")
    folder, cache = image_folder(tmp_path / "set", rows), tmp_path / "cache"
    opened: Counter[str] = Counter()
    decode = images.decode_image

    def counted(*args: Any) -> Image.Image:
        opened["images"] += 1
        return decode(*args)

    monkeypatch.setattr(images, "decode_image", counted)

    def encode(**options: Any) -> CachedLatents:
        opened.clear()
        return encode_images(
            pipe, open_images(folder), progress=False, cache_dir=cache, **{"resolution": 16} | options
        )

    first = encode()
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors"
    assert opened["images"] == 5
    assert first.source == str(folder)
    assert first.captions[2] == "größer \N{SNOWMAN} ?"
    assert same(first, encode())
    assert not opened
    for damage in (file.read_bytes()[:-100], b"", b"x" * 1000):
        file.write_bytes(damage)
        caplog.clear()
        assert same(first, encode())
        assert opened["images"] == 5
        assert "encoding again" in caplog.text
        assert same(first, encode())
        assert not opened
    for options in (
        {"seed": 1},
        {"max_samples": 3},
        {"resolution": 18},
        {"center_crop": False},
        {"random_flip": True},
    ):
        encode(**options)
        assert opened, options
    assert len(list(cache.iterdir())) == 6


def test_the_cache_depends_on_data_and_autoencoder(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    folder, cache = image_folder(tmp_path / "set", readable(2)), tmp_path / "cache"

    def files() -> int:
        encode_images(pipe, open_images(folder), resolution=16, progress=False, cache_dir=cache)
        return len(list(cache.iterdir()))

    assert files() == 1
    os.utime(folder / "1.png", (1, 1))
    assert files() == 2
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("number 0", "none"))
    assert files() == 3
    weight = pipe.vae.encoder.conv_in.weight.data
    weight_copy = weight.clone()
    try:
        weight[0, 0, 0, 0] += 1
        assert files() == 4
    finally:
        weight.copy_(weight_copy)  # the tests share the autoencoder
    assert files() == 4
