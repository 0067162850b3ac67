"""Training on aspect-ratio buckets: each batch has one size, every sample its own time ids, and a stopped run resumes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import maskunet as mu
from maskunet.data import CachedLatents, PromptEmbeds, encode_images, open_images
from maskunet.training import TrainConfig, build_method, open_dataset
from maskunet.training.batches import Batch, BatchSampler

# diffusers' Euler scheduler turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

#: Widths and heights, of three buckets.
SIZES = [(40, 60), (60, 40), (50, 50)]
CONFIG = TrainConfig(
    max_train_steps=6,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=5,
    validation_steps=3,
    checkpointing_steps=3,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    lines = []
    for i in range(18):
        width, height = SIZES[i % 3]
        values = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values).save(path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"{'abc'[i % 3]} {'abcdef'[i // 3]}"}) + "\n")
    (path / "metadata.jsonl").write_text("".join(lines))
    return path


@pytest.fixture(params=["sd1", "sdxl"])
def any_pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("pipe" if request.param == "sd1" else "sdxl_pipe")


def encode(pipe: Any, folder: Path) -> CachedLatents:
    return encode_images(pipe, open_images(folder), resolution=64, aspect_ratio_buckets=True, progress=False)


def test_batches_have_one_size_and_the_time_ids_of_their_images(any_pipe: Any, folder: Path) -> None:
    data = encode(any_pipe, folder)
    sampler = BatchSampler(any_pipe, data, PromptEmbeds(any_pipe), CONFIG, 1000, group_size=4)
    shapes = []
    for start in range(0, 48, 4):
        halves = [sampler(range(p, p + 2), seed=3, dropout=0.0) for p in (start, start + 2)]
        assert halves[0].latents.shape == halves[1].latents.shape, "two processes take one size"
        for batch in halves:
            require_own_time_ids(batch, any_pipe)
        shapes.append(tuple(halves[0].latents.shape[-2:]))
        both = sampler(range(start, start + 4), seed=3, dropout=0.0)
        assert torch.equal(both.latents, torch.cat([half.latents for half in halves]))
        assert torch.equal(both.noise, torch.cat([half.noise for half in halves]))
    assert set(shapes) == {(40, 24), (24, 40), (32, 32)}


def require_own_time_ids(batch: Batch, pipe: Any) -> None:
    """The caption's first letter names the image's shape."""
    for i, caption in enumerate(batch.captions):
        width, height = SIZES["abc".index(caption[0])]
        bucket = {(40, 60): (80, 48), (60, 40): (48, 80), (50, 50): (64, 64)}[width, height]
        top_left = {(40, 60): (0, 2), (60, 40): (2, 0), (50, 50): (0, 0)}[width, height]
        assert batch.latents.shape[-2:] == (bucket[0] // 2, bucket[1] // 2)
        if "added_cond_kwargs" in batch.conditions:
            ids = batch.conditions["added_cond_kwargs"]["time_ids"][i].tolist()
            assert ids == [height, width, *top_left, *bucket]
    assert ("added_cond_kwargs" in batch.conditions) == hasattr(pipe, "text_encoder_2")


def test_validation_samples_do_not_depend_on_the_batch_size(any_pipe: Any, folder: Path) -> None:
    sampler = BatchSampler(any_pipe, encode(any_pipe, folder), PromptEmbeds(any_pipe), CONFIG, 1000)
    drawn = []
    for batch_size in (1, 3):
        batches = sampler.split_positions(range(11), batch_size, 5)
        assert max(map(len, batches)) <= batch_size
        assert sorted(p for positions in batches for p in positions) == list(range(11))
        latents: dict[int, Tensor] = {}
        for positions in batches:
            latents |= zip(positions, sampler(positions, seed=5, dropout=0.0).latents, strict=True)
        drawn.append(latents)
    assert all(torch.equal(drawn[0][p], drawn[1][p]) for p in range(11))


def state(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoint-000006" / "state.pt", weights_only=True)["trained"]


@pytest.mark.parametrize(
    "kind", [mu.LowRankMaskerConfig(initial_logit=-0.36), mu.MaskGeneratorConfig(initial_logit=-0.36)]
)
def test_stopped_and_resumed_equals_uninterrupted(any_pipe: Any, folder: Path, tmp_path: Path, kind: Any) -> None:
    data, held_out = open_dataset(
        any_pipe,
        folder,
        CONFIG,
        resolution=64,
        aspect_ratio_buckets=True,
        cache_dir=tmp_path / "cache",
        progress=False,
    )
    assert held_out is not None
    assert (len(data), len(held_out)) == (17, 1)

    def go(run_folder: Path) -> list[dict[str, Any]]:
        method = build_method("mask", any_pipe, kind)
        before = {n: p.clone() for n, p in method.masker.named_parameters()}  # type: ignore[attr-defined]
        result = mu.train(any_pipe, method, data, CONFIG, run_folder, validation=held_out, progress=False)
        assert any(not torch.equal(p, before[n]) for n, p in result.masker.named_parameters())
        return result.stats

    uninterrupted = go(tmp_path / "uninterrupted")
    shutil.copytree(tmp_path / "uninterrupted", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoint-000006")
    assert go(tmp_path / "part") == uninterrupted
    states = [state(tmp_path / name) for name in ("uninterrupted", "part")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_squares_are_another_run(pipe: Any, folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**vars(CONFIG), "max_train_steps": 1, "validation_samples": 0})

    def go(buckets: bool) -> None:
        data, _ = open_dataset(pipe, folder, config, resolution=64, aspect_ratio_buckets=buckets, progress=False)
        mu.train(
            pipe,
            build_method("lora", pipe, mu.LowRankMaskerConfig(), rank=2),
            data,
            config,
            tmp_path / "run",
            progress=False,
        )

    go(True)
    with pytest.raises(mu.MaskUNetError, match="num_buckets None instead of 3"):
        go(False)


def test_the_command_trains_a_checkpoint_and_resumes(
    any_pipe: Any, folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    copy.deepcopy(any_pipe).save_pretrained(tmp_path / "model")
    words = [
        "train",
        "--model",
        tmp_path / "model",
        "--dataset",
        folder,
        "--output",
        tmp_path / "run",
        "--resolution",
        64,
    ]
    words += ["--aspect-ratio-buckets", "--random-flip", "--cache-dir", tmp_path / "cache", "--device", "cpu"]
    words += ["--max-train-steps", 3, "--train-batch-size", 2, "--checkpointing-steps", 1, "--validation-samples", 2]
    code, out, err = run(*words)
    assert code == 0, err
    assert "masker in" in out
    stats = (tmp_path / "run" / "stats.jsonl").read_text()
    (cached,) = (tmp_path / "cache").iterdir()
    stamp = cached.stat().st_mtime_ns
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-00000{step}")
    code, out, err = run(*words)
    assert code == 0, err
    assert (tmp_path / "run" / "stats.jsonl").read_text() == stats
    assert cached.stat().st_mtime_ns == stamp
    code, _, err = run(*words[:7], *words[7:9], "--resolution", 8, "--aspect-ratio-buckets", "--device", "cpu")
    assert code == 2
    assert "at least 16 with aspect_ratio_buckets, got 8" in err
