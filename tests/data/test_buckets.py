"""Aspect-ratio buckets: their sizes, the crops, and the order of their samples."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from image_folders import encoded, image_folder, noise_image
from PIL import Image

from maskunet.data import CachedLatents, encode_images, encode_posterior, open_images
from maskunet.data.buckets import BucketOrder, bucket_sizes, nearest_bucket
from maskunet.errors import DataError, SettingError


def test_buckets_are_those_of_other_trainers() -> None:
    wide = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    assert bucket_sizes(512, 64) == (*wide, (512, 512), *sorted((w, h) for h, w in wide))
    # Stable Diffusion XL was trained in these.
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640), (768, 1344)} <= {*bucket_sizes(1024, 64)}


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (1024, 64), (64, 16), (520, 64), (16, 16)])
def test_sides_are_multiples_of_the_step_and_areas_nearly_equal(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution, step)
    square = resolution // step * step
    assert (square, square) in sizes
    assert len(set(sizes)) == len(sizes)
    assert {(w, h) for h, w in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert resolution / 2 <= min(height, width) <= max(height, width) <= resolution * 2
        # A step more on the shorter side would be more than the square's area.
        assert height * width <= resolution**2 < (min(height, width) + step) * max(height, width)


def test_a_resolution_below_one_step_is_refused() -> None:
    with pytest.raises(SettingError, match="at least 64 with aspect_ratio_buckets, got 56"):
        bucket_sizes(56, 64)


@pytest.mark.parametrize(
    ("image", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((3000, 3000), (512, 512)),
        ((20, 20), (512, 512)),
        ((480, 640), (448, 576)),
        ((640, 480), (576, 448)),
        ((1080, 1920), (384, 640)),
        ((100, 1000), (256, 1024)),
        ((1000, 10), (1024, 256)),
    ],
)
def test_the_nearest_aspect_ratio(image: tuple[int, int], bucket: tuple[int, int]) -> None:
    sizes = bucket_sizes(512, 64)
    assert nearest_bucket(*image, sizes) == bucket
    distances = [abs(math.log(h / w * image[1] / image[0])) for h, w in sizes]
    assert math.isclose(min(distances), abs(math.log(bucket[0] / bucket[1] * image[1] / image[0])))


ROWS = [("a", (20, 30)), ("b", (60, 20)), ("c", (33, 33)), ("d", (200, 20)), ("e", (64, 96)), ("f", (60, 22))]


def encode_rows(pipe: StableDiffusionPipeline, folder: Path, **options: object) -> CachedLatents:
    rows = [(f"{name}.png", encoded(noise_image(i, size)), name) for i, (name, size) in enumerate(ROWS)]
    images = open_images(folder if folder.exists() else image_folder(folder, rows))
    return encode_images(pipe, images, resolution=64, aspect_ratio_buckets=True, progress=False, **options)  # type: ignore[arg-type]


def test_images_are_cropped_to_their_bucket(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    data = encode_rows(pipe, tmp_path / "set", batch_size=2)
    assert data.captions == tuple("abcdef")
    # Sides are multiples of 16 pixels here: original height and width, top, left, height and width of the bucket.
    assert data.time_ids is not None
    assert data.time_ids.tolist() == [
        [30, 20, 0, 2, 80, 48],  # enlarged to 80 x 53, until it just covers the bucket
        [20, 60, 0, 0, 32, 96],
        [33, 33, 0, 0, 64, 64],
        [20, 200, 0, 96, 32, 128],
        [96, 64, 0, 2, 80, 48],
        [22, 60, 2, 0, 32, 96],  # 35 x 96
    ]
    assert [data.size(i) for i in range(6)] == [(40, 24), (16, 48), (32, 32), (16, 64), (40, 24), (16, 48)]
    assert [bucket.tolist() for bucket in data.buckets] == [[1, 5], [3], [2], [0, 4]]
    for index, (resized, box) in {
        1: ((96, 32), (0, 0, 96, 32)),
        3: ((320, 32), (96, 0, 224, 32)),
        4: ((53, 80), (2, 0, 50, 80)),
    }.items():
        image = noise_image(index, ROWS[index][1]).resize(resized, Image.Resampling.LANCZOS).crop(box)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        mean, std = encode_posterior(pipe.vae, pixels)
        generator = [torch.Generator().manual_seed(0)]
        noise = torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(0))
        latents = data.latents([index], generator)
        assert latents.shape == mean.shape
        torch.testing.assert_close(latents[0], mean[0].float() + std[0].float() * noise, atol=0.03, rtol=0.03)


def test_flips_and_random_crops_follow_the_seed(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    first = encode_rows(pipe, tmp_path / "set", center_crop=False, random_flip=True, seed=1)
    again = encode_rows(pipe, tmp_path / "set", center_crop=False, random_flip=True, seed=1, batch_size=3)
    other = encode_rows(pipe, tmp_path / "set", center_crop=False, random_flip=True, seed=2)
    assert first.time_ids is not None
    assert again.time_ids is not None
    assert other.time_ids is not None
    assert torch.equal(first.time_ids, again.time_ids)
    torch.testing.assert_close(first.mean, again.mean, atol=0.01, rtol=0.01)
    assert not torch.equal(first.time_ids, other.time_ids)
    assert 0 <= first.time_ids[3, 3] <= 320 - 128


def test_buckets_have_a_cache_of_their_own(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    first = encode_rows(pipe, tmp_path / "set", cache_dir=tmp_path / "cache")
    second = encode_rows(pipe, tmp_path / "set", cache_dir=tmp_path / "cache")
    encode_images(pipe, open_images(tmp_path / "set"), resolution=64, progress=False, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.std, second.std)
    assert first.sizes is not None
    assert second.sizes is not None
    assert torch.equal(first.sizes, second.sizes)


def test_a_split_keeps_sizes_and_values(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    data = encode_rows(pipe, tmp_path / "set")
    first, last = data.split(4)
    assert (first.captions, last.captions) == (tuple("abcd"), tuple("ef"))
    assert [last.size(i) for i in range(2)] == [(40, 24), (16, 48)]

    def latents(part: CachedLatents, index: int) -> torch.Tensor:
        return part.latents([index], [torch.Generator().manual_seed(0)])

    assert torch.equal(latents(first, 3), latents(data, 3))
    assert torch.equal(latents(last, 1), latents(data, 5))
    joined = CachedLatents.join([first, last])
    assert torch.equal(joined.mean, data.mean)
    assert joined.captions == data.captions


def test_a_batch_has_one_size(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    data = encode_rows(pipe, tmp_path / "set")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    assert data.latents([0, 4], generators).shape == (2, 4, 40, 24)
    with pytest.raises(DataError, match="samples of one size in a batch"):
        data.latents([0, 1], generators)
    sizes = torch.tensor([[2, 2], [1, 2]])
    with pytest.raises(DataError, match="sizes"):
        CachedLatents(torch.zeros(23), torch.zeros(24), ("a", "b"), sizes=sizes)
    with pytest.raises(DataError, match="2 sizes"):
        CachedLatents(torch.zeros(24), torch.zeros(24), ("a",), sizes=sizes)


def split_numbers(counts: list[int]) -> list[torch.Tensor]:
    return list(torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).split(counts))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 3))
def test_every_group_comes_from_one_bucket(counts: list[int], group_size: int, seed: int) -> None:
    buckets = split_numbers(counts)
    bucket_of = {int(i): b for b, bucket in enumerate(buckets) for i in bucket}
    order = BucketOrder(buckets, group_size, seed)
    samples = [order(p) for p in range(20 * group_size)]
    for start in range(0, len(samples), group_size):
        assert len({bucket_of[i] for i in samples[start : start + group_size]}) == 1
    # Any position at once, as when a run is resumed.
    later = BucketOrder(buckets, group_size, seed)
    assert [later(p) for p in reversed(range(20 * group_size))] == samples[::-1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 3))
def test_samples_occur_equally_often(counts: list[int], group_size: int, seed: int) -> None:
    buckets = split_numbers(counts)
    order = BucketOrder(buckets, group_size, seed)
    epochs = 12
    occurrences = Counter(order(p) for p in range(epochs * sum(counts) // group_size * group_size))
    for bucket in buckets:
        mean = sum(occurrences[int(i)] for i in bucket) / len(bucket)
        # A bucket lacks or exceeds its share by the groups of the epoch under way and the samples carried over.
        assert abs(mean - epochs) <= 1 + 2 * group_size * len(counts) / len(bucket)
        numbers = [occurrences[int(i)] for i in bucket]
        assert max(numbers) - min(numbers) <= 1


def test_groups_of_one_are_epochs_of_every_sample() -> None:
    order = BucketOrder(split_numbers([5, 1, 9]), 1, 0)
    epochs = [[order(p) for p in range(15 * e, 15 * e + 15)] for e in range(3)]
    assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != [BucketOrder(split_numbers([5, 1, 9]), 1, 1)(p) for p in range(15)]


def test_buckets_are_mixed_within_an_epoch() -> None:
    buckets = split_numbers([40, 40])
    first = {int(i) for i in buckets[0]}
    order = BucketOrder(buckets, 4, 0)
    sides = [order(p) in first for p in range(0, 80, 4)]
    assert sum(a != b for a, b in itertools.pairwise(sides)) >= 4
