"""Validation images: fixed prompts and seeds, generated with the masks of their step, and without effect on the training."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

import maskunet as mu
from maskunet.data import CachedLatents, PromptEmbeds, sample_index
from maskunet.maskers import MaskTable
from maskunet.relaxation import derive_seed
from maskunet.sampling import generate
from maskunet.shapes.scenes import training_scene
from maskunet.training import build_method
from maskunet.training.batches import BatchSampler
from maskunet.training.prediction_errors import DiffusionErrors
from maskunet.training.validation import Validation
from maskunet.zoo.dataset import encode_scenes

PROMPTS = ("ab", "a red circle", "ab")
CONFIG = mu.TrainConfig(
    max_train_steps=5,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=4,
    validation_steps=2,
    validation_prompts=PROMPTS,
    validation_num_inference_steps=2,
    validation_guidance_scale=4.0,
)
OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "progress": False}


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def go(pipe: Any, dataset: CachedLatents, folder: Path, logit: float = -0.36, **changes: Any) -> mu.training.Run:
    config = mu.TrainConfig(**{**vars(CONFIG), **changes})
    masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=logit), seed=0)
    return mu.train(pipe, masker, dataset, config, folder, progress=False)


def saved_images(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / "validation").rglob("*.png"))
    return {str(f.relative_to(folder / "validation")): np.asarray(Image.open(f)) for f in files}


def expected(pipe: StableDiffusionPipeline) -> list[np.ndarray]:
    images = (generate(pipe, PROMPTS, **OPTIONS).tensor * 255).round().byte().permute(0, 2, 3, 1)
    return list(images.numpy())


def test_images_are_saved_by_step_with_their_records_and_repeat(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        go(pipe, dataset, tmp_path / name)
    a, b = saved_images(tmp_path / "a"), saved_images(tmp_path / "b")
    assert list(a) == [f"step-00000{step}/{i:05d}.png" for step in (2, 4, 5) for i in range(3)]
    assert a.keys() == b.keys()
    assert all(np.array_equal(x, b[k]) for k, x in a.items())
    assert not np.array_equal(a["step-000005/00000.png"], a["step-000005/00002.png"])  # one prompt, two seeds
    records = [
        json.loads((tmp_path / "a" / "validation" / "step-000005" / f"{i:05d}.json").read_text()) for i in range(3)
    ]
    assert [(record["prompt"], record["seed"]) for record in records] == list(zip(PROMPTS, range(3), strict=True))


def test_images_show_the_masks_of_inference(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    base = expected(pipe)
    # These masks keep every weight by threshold, and drop a third under noise.
    go(pipe, dataset, tmp_path / "kept", logit=0.1, learning_rate=1e-6)
    kept = saved_images(tmp_path / "kept")
    assert all(np.array_equal(x, base[int(k[-5])]) for k, x in kept.items())
    run = go(pipe, dataset, tmp_path / "masked")
    masked = saved_images(tmp_path / "masked")
    assert not any(np.array_equal(masked[f"step-000005/{i:05d}.png"], base[i]) for i in range(3))
    assert not np.array_equal(masked["step-000002/00000.png"], masked["step-000005/00000.png"])
    assert all(np.array_equal(x, y) for x, y in zip(expected(pipe), base, strict=True))
    mu.attach(pipe, run.masker)
    assert all(np.array_equal(masked[f"step-000005/{i:05d}.png"], x) for i, x in enumerate(expected(pipe)))


@pytest.mark.parametrize("count", [1, 3])
def test_the_gain_has_students_interval_over_images(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, count: int
) -> None:
    """Eight pairs of three images are three differences, and those of one image have no interval."""
    data, _ = dataset.split(count)
    config = mu.TrainConfig(validation_samples=8, validation_batch_size=4, caption_dropout=0.5, seed=3)
    sampler = BatchSampler(pipe, data, PromptEmbeds(pipe), config, 1000)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    validation = Validation(
        pipe, sampler, DiffusionErrors(pipe.unet, scheduler), config, tmp_path, Accelerator(cpu=True)
    )
    mu.attach(pipe, MaskTable.for_unet(pipe.unet, initial_logit=-5.0))
    seed = derive_seed(3, "validation")
    gains: dict[int, list[float]] = {}
    for p in range(8):
        batch, losses = sampler(range(p, p + 1), seed=seed, dropout=0.0), []
        with torch.no_grad():
            for context in (mu.disabled(pipe), contextlib.nullcontext()):
                with context:
                    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
                    prediction = pipe.unet(noisy, batch.timesteps, batch.prompt_embeds).sample
                    losses.append(float((prediction - batch.noise).square().mean()))
        gains.setdefault(sample_index(p, count, seed), []).append(losses[0] - losses[1])
    means = [sum(values) / len(values) for values in gains.values()]
    figures = validation.compare()
    assert len(means) == count
    assert figures["gain"] == pytest.approx(sum(means) / count, rel=1e-4)
    if count == 1:
        assert figures.keys() == {"gain", "density"}
    else:
        t = 4.302653  # the 97.5 % point for 2 degrees of freedom
        assert figures["gain_ci95"] == pytest.approx(t * statistics.stdev(means) / 3**0.5, rel=1e-3)


@pytest.mark.parametrize("use_ema", [True, False])
def test_images_do_not_disturb_the_training(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, use_ema: bool
) -> None:
    runs = [go(pipe, dataset, tmp_path / str(len(p)), validation_prompts=p, use_ema=use_ema) for p in (PROMPTS, ())]
    assert runs[0].stats == runs[1].stats
    assert not (tmp_path / "0" / "validation").exists()
    states = [run.masker.state_dict() for run in runs]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_a_run_can_be_resumed_with_other_prompts(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    uninterrupted = go(pipe, dataset, tmp_path / "uninterrupted", checkpointing_steps=3)
    go(pipe, dataset, tmp_path / "part", checkpointing_steps=3)
    (tmp_path / "part" / "checkpoint-000005").rename(tmp_path / "part" / "checkpoint-000005.part")
    again = go(pipe, dataset, tmp_path / "part", checkpointing_steps=3, validation_prompts=(*PROMPTS, "star"))
    assert again.stats == uninterrupted.stats
    assert (tmp_path / "part" / "validation" / "step-000005" / "00003.png").is_file()


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}])
def test_other_methods_and_precisions_save_images(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, changes: dict[str, Any]
) -> None:
    base = expected(pipe)
    config = mu.TrainConfig(**{**vars(CONFIG), **changes, "learning_rate": 0.2})
    mu.train(pipe, build_method("lora", pipe, rank=2), dataset, config, tmp_path, progress=False)
    images = saved_images(tmp_path)
    assert not any(np.array_equal(images[f"step-000005/{i:05d}.png"], base[i]) for i in range(3))
