"""Validation pictures: fixed prompts and seeds, drawn with the masks of their step, and without effect on the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.sampling import generate
from maskunet.shapes.scenes import training_scene
from maskunet.training import build_method
from maskunet.zoo.dataset import encode_scenes

PROMPTS = ("ab", "a red circle", "ab")
CONFIG = mu.TrainConfig(
    max_train_steps=5,
    train_batch_size=2,
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


def drawn(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / "validation").rglob("*"))
    return {str(f.relative_to(folder / "validation")): np.asarray(Image.open(f)) for f in files if f.is_file()}


def expected(pipe: StableDiffusionPipeline) -> list[np.ndarray]:
    pictures = (generate(pipe, PROMPTS, **OPTIONS).tensor * 255).round().byte().permute(0, 2, 3, 1)
    return list(pictures.numpy())


def test_pictures_have_their_places_and_repeat(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        go(pipe, dataset, tmp_path / name)
    a, b = drawn(tmp_path / "a"), drawn(tmp_path / "b")
    assert list(a) == [f"step-00000{step}/{i}.png" for step in (2, 4, 5) for i in range(3)]
    assert a.keys() == b.keys()
    assert all(np.array_equal(x, b[k]) for k, x in a.items())
    assert not np.array_equal(a["step-000005/0.png"], a["step-000005/2.png"])  # one prompt, two seeds


def test_pictures_show_the_masks_of_inference(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    base = expected(pipe)
    # Kept by threshold, a third of them dropped under noise: the pictures of the base model.
    go(pipe, dataset, tmp_path / "kept", logit=0.1, learning_rate=1e-6)
    kept = drawn(tmp_path / "kept")
    assert all(np.array_equal(x, base[int(k[-5])]) for k, x in kept.items())
    run = go(pipe, dataset, tmp_path / "masked")
    masked = drawn(tmp_path / "masked")
    assert not any(np.array_equal(masked[f"step-000005/{i}.png"], base[i]) for i in range(3))
    assert not np.array_equal(masked["step-000002/0.png"], masked["step-000005/0.png"])
    assert all(np.array_equal(x, y) for x, y in zip(expected(pipe), base, strict=True))
    mu.attach(pipe, run.masker)
    assert all(np.array_equal(masked[f"step-000005/{i}.png"], x) for i, x in enumerate(expected(pipe)))


@pytest.mark.parametrize("use_ema", [True, False])
def test_pictures_do_not_disturb_the_training(
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
    whole = go(pipe, dataset, tmp_path / "whole", checkpointing_steps=3)
    go(pipe, dataset, tmp_path / "part", checkpointing_steps=3)
    (tmp_path / "part" / "checkpoint-000005").rename(tmp_path / "part" / "checkpoint-000005.part")
    again = go(pipe, dataset, tmp_path / "part", checkpointing_steps=3, validation_prompts=(*PROMPTS, "star"))
    assert again.stats == whole.stats
    assert (tmp_path / "part" / "validation" / "step-000005" / "3.png").is_file()


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}])
def test_other_methods_and_precisions_draw(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, changes: dict[str, Any]
) -> None:
    base = expected(pipe)
    config = mu.TrainConfig(**{**vars(CONFIG), **changes, "learning_rate": 0.2})
    mu.train(pipe, build_method("lora", pipe, rank=2), dataset, config, tmp_path, progress=False)
    found = drawn(tmp_path)
    assert not any(np.array_equal(found[f"step-000005/{i}.png"], base[i]) for i in range(3))
