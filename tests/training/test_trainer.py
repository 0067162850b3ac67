"""The trainer: it lowers the loss, changes nothing but the masker, repeats, and resumes bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.attaching import Attachment, attachment_of
from maskunet.data import CachedLatents
from maskunet.errors import CheckpointError, SettingError
from maskunet.maskers import Masker, MaskTable, RandomMasks
from maskunet.shapes.scenes import training_scene
from maskunet.training import prediction_errors as module
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=8,
    train_batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    validation_samples=8,
    checkpointing_steps=4,
)


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(12)])
    # The tiny autoencoder halves once; the tiny U-Net expects 8 by 8.
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def new_masker(pipe: StableDiffusionPipeline) -> mu.MaskGenerator:
    return mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=0.5), seed=0)


def tensors(masker: Masker) -> list[torch.Tensor]:
    return [v.clone() for v in masker.state_dict().values()]


def same(a: Masker, b: Masker) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_only_the_masker_changes(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    flags = [[p.requires_grad for p in part.parameters()] for part in parts]
    masker = new_masker(pipe)
    start = tensors(masker)
    run = mu.train(pipe, masker, dataset, CONFIG, tmp_path, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(start, tensors(masker), strict=True))
    for part, state, flag in zip(parts, states, flags, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in part.state_dict().items())
        assert [p.requires_grad for p in part.parameters()] == flag
        assert all(p.grad is None for p in part.parameters())
    assert attachment_of(pipe) is None
    assert not run.masker.training
    assert same(mu.load(run.folder / "masker", pipe), masker)


def test_runs_repeat_and_seeds_differ(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    runs = [
        mu.train(
            pipe,
            new_masker(pipe),
            dataset,
            mu.TrainConfig(**{**vars(CONFIG), "seed": s}),
            tmp_path / n,
            progress=False,
        )
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert same(runs[0].masker, runs[1].masker)
    assert not same(runs[0].masker, runs[2].masker)


def test_stopped_and_resumed_equals_uninterrupted(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path / "uninterrupted", progress=False)
    calls = 0
    real = module.diffusion_errors

    def stop(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 7:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(module, "diffusion_errors", stop)
    with pytest.raises(KeyboardInterrupt):
        mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path / "part", progress=False)
    assert attachment_of(pipe) is None
    monkeypatch.setattr(module, "diffusion_errors", real)
    resumed = mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path / "part", progress=False)
    assert same(resumed.masker, uninterrupted.masker)
    assert resumed.stats == uninterrupted.stats
    assert not list(tmp_path.rglob("*.part"))


def test_other_settings_in_the_same_folder_are_refused(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    other = mu.TrainConfig(**{**vars(CONFIG), "learning_rate": 0.5})
    with pytest.raises(CheckpointError, match=r"got learning_rate 0\.5 instead of 0\.02; set them back"):
        mu.train(pipe, new_masker(pipe), dataset, other, tmp_path, progress=False)


def test_training_lowers_the_loss_where_weights_hurt(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    """Weights that hurt are planted in the value projections; masks must find and drop them."""
    layer = pipe.unet.up_blocks[2].attentions[0].transformer_blocks[0].attn2.to_v
    with torch.no_grad():
        layer.weight[:, :4] += 6.0
    table = MaskTable.for_unet(pipe.unet, ["attentions.0.transformer_blocks.0.attn2.to_v"], initial_logit=0.3)
    config = mu.TrainConfig(
        max_train_steps=60,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        learning_rate=0.05,
        gumbel=False,
        validation_samples=64,
        lr_scheduler="constant",
    )
    run = mu.train(pipe, table, dataset, config, tmp_path, progress=False)
    last = run.stats[-1]
    assert last["gain"] > last["gain_ci95"] > 0
    assert last["density"] < 1


@pytest.mark.parametrize("gumbel", [True, False])
def test_validation_sees_the_masks_of_inference(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, gumbel: bool
) -> None:
    """Logits that keep every weight by threshold, and drop a third under noise: no gain, no loss, density 1."""
    table = MaskTable.for_unet(pipe.unet, initial_logit=0.1)
    config = mu.TrainConfig(**{**vars(CONFIG), "gumbel": gumbel, "learning_rate": 1e-6})
    last = mu.train(pipe, table, dataset, config, tmp_path, progress=False).stats[-1]
    assert last["density"] == 1
    assert last["gain"] == pytest.approx(0, abs=1e-6)


def test_threshold_training_draws_no_noise(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = []
    real = Attachment.draw
    monkeypatch.setattr(Attachment, "draw", lambda self, *args: draws.append(real(self, *args)) or draws[-1])
    config = mu.TrainConfig(**{**vars(CONFIG), "gumbel": False})
    mu.train(pipe, new_masker(pipe), dataset, config, tmp_path, progress=False)
    assert draws
    assert all(d.seed is None for d in draws)


def test_masker_without_parameters_is_refused(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="0 parameters"):
        mu.train(pipe, RandomMasks.for_unet(pipe.unet), dataset, CONFIG, tmp_path)


def test_stats_are_on_disk(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    run = mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert lines == run.stats
    assert {"step", "loss", "gain", "gain_ci95", "density"} <= set(lines[-1])
