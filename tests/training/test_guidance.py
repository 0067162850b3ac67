"""Objective "guidance": the target is the base model's guided prediction, whatever is being trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import maskunet as mu
from maskunet import zoo
from maskunet.data import CachedLatents, PromptEmbeds
from maskunet.errors import SettingError
from maskunet.sampling import generate
from maskunet.sampling.guidance_scale import default_guidance_scale
from maskunet.training import TrainConfig, build_method
from maskunet.training.batches import BatchSampler
from maskunet.training.prediction_errors import GuidanceErrors
from maskunet.zoo.dataset import encode_world

SHARED: dict[str, Any] = {
    "max_train_steps": 4,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lr_warmup_steps": 0,
    "lr_scheduler": "constant",
    "objective": "guidance",
    "guidance_scale": 3.0,
    "gumbel": False,
    "validation_samples": 4,
    "validation_steps": 4,
    "checkpointing_steps": 2,
    "logging_steps": 1,
}
STEPS: dict[str, Any] = {
    "max_train_steps": 16,
    "train_batch_size": 16,
    "learning_rate": 4e-3,
    "validation_samples": 32,
    "validation_steps": 16,
}
MASK = mu.LowRankMaskerConfig(targets="all", initial_logit=-0.35, rank=4)


@pytest.fixture(scope="module")
def bundled() -> Any:
    return zoo.load("shapes")


@pytest.fixture
def data() -> CachedLatents:
    mean = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return CachedLatents(mean, torch.full_like(mean, 0.1), tuple(f"{c} b" for c in "abcdefgh"))


def trained(pipe: Any, data: CachedLatents, folder: Path, method: str = "mask", **changes: Any) -> Any:
    config = TrainConfig(**{**SHARED, **changes})
    built = build_method(method, pipe, MASK, gumbel=config.gumbel, rank=4)
    return mu.train(pipe, built, data, config, folder, progress=False)


def guidance_errors(pipe: Any, data: CachedLatents, method: Any, **changes: Any) -> tuple[GuidanceErrors, Any]:
    config = TrainConfig(**{**SHARED, **changes})
    embeds = PromptEmbeds(pipe)
    batch = BatchSampler(pipe, data, embeds, config, 1000)(range(4), seed=0, dropout=0.0)
    return GuidanceErrors(pipe, pipe.scheduler, embeds, method, config), batch


@pytest.mark.parametrize("name", ["pipe", "sdxl_pipe"])
@pytest.mark.parametrize("negative", ["", "c d"])
@pytest.mark.parametrize("kind", ["mask", "lora", "mask+lora"])
def test_the_target_is_the_guided_prediction_of_the_base(
    request: pytest.FixtureRequest, data: CachedLatents, name: str, negative: str, kind: str
) -> None:
    pipe = request.getfixturevalue(name)
    pipe.unet.requires_grad_(False)
    method = build_method(kind, pipe, MASK, rank=4)
    errors, batch = guidance_errors(pipe, data, method, negative_prompt=negative)
    noisy = pipe.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    embeds, pooled = PromptEmbeds(pipe)([negative] * 4)
    conditions = dict(batch.conditions)
    if pooled is not None:
        conditions = {"added_cond_kwargs": batch.conditions["added_cond_kwargs"] | {"text_embeds": pooled}}
    with torch.no_grad():
        uncond = pipe.unet(noisy, batch.timesteps, embeds, **conditions).sample
        cond = pipe.unet(noisy, batch.timesteps, batch.prompt_embeds, **batch.conditions).sample
    expected = uncond + 3 * (cond - uncond)
    trained_module = method.install(pipe, 0)
    with torch.no_grad():
        for parameter in trained_module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    method.start_batch(batch.seeds)
    method.set_eval()
    torch.testing.assert_close(errors.guided(noisy, batch), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        prediction = pipe.unet(noisy, batch.timesteps, batch.prompt_embeds, **batch.conditions).sample
        by_hand = (prediction - expected).square().mean((1, 2, 3))
        assert not torch.allclose(prediction, cond)
        torch.testing.assert_close(errors(batch), by_hand, rtol=1e-3, atol=1e-5)
    method.remove(pipe)


def test_rescaling_keeps_the_deviation_of_the_conditional_prediction(pipe: Any, data: CachedLatents) -> None:
    method = build_method("mask", pipe, MASK)
    errors, batch = guidance_errors(pipe, data, method, guidance_rescale=1.0)
    noisy = pipe.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        cond = pipe.unet(noisy, batch.timesteps, batch.prompt_embeds).sample
    rescaled = errors.guided(noisy, batch)
    torch.testing.assert_close(rescaled.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["mask", "lora", "mask+lora"])
def test_training_approaches_the_guided_prediction(bundled: Any, tmp_path: Path, method: str) -> None:
    """On held-out samples, in a few steps."""
    before = {name: value.clone() for name, value in bundled.unet.state_dict().items()}
    data, held_out = encode_world(bundled, "shapes", train_samples=128, held_out_samples=32)
    config = TrainConfig(**{**SHARED, **STEPS})
    built = build_method(method, bundled, mu.LowRankMaskerConfig(initial_logit=0.3), gumbel=False)
    run = mu.train(bundled, built, data, config, tmp_path, validation=held_out, progress=False)
    assert run.stats[-1]["gain"] > 0.1 * run.stats[0]["loss"]
    after = bundled.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_method_that_changes_the_base_is_refused(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"expected a method beside the base model's weights .* got 'full'"):
        trained(pipe, data, tmp_path, "full")


def test_stopped_and_resumed_equals_uninterrupted(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    uninterrupted = trained(pipe, data, tmp_path / "uninterrupted")
    trained(pipe, data, tmp_path / "part")
    (tmp_path / "part" / "checkpoint-000004" / "state.pt").unlink()
    again = trained(pipe, data, tmp_path / "part")
    first, second = uninterrupted.masker.state_dict(), again.masker.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_no_caption_is_dropped(
    pipe: Any, data: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    call = BatchSampler.__call__

    def counted(self: Any, positions: range, *, seed: int, dropout: float) -> Any:
        rates.append(dropout)
        return call(self, positions, seed=seed, dropout=dropout)

    monkeypatch.setattr(BatchSampler, "__call__", counted)
    trained(pipe, data, tmp_path, caption_dropout=0.5)
    assert set(rates) == {0.0}


def test_the_masker_knows_the_guidance_that_it_replaces(
    pipe: Any, data: CachedLatents, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert trained(pipe, data, tmp_path / "plain", objective="diffusion").masker.replaced_guidance is None
    run = trained(pipe, data, tmp_path / "run")
    masker = mu.load(tmp_path / "run" / "masker", pipe)
    assert run.masker.replaced_guidance == masker.replaced_guidance == 3.0
    card = (tmp_path / "run" / "masker" / "README.md").read_text()
    assert "guidance of scale 3 in one call per step" in card
    assert 'pipe("a prompt", guidance_scale=1)' in card
    mu.attach(pipe, masker)
    assert (
        default_guidance_scale(pipe) == generate(pipe, ["a b"], num_inference_steps=1).settings["guidance_scale"] == 1
    )
    with mu.disabled(pipe):
        assert default_guidance_scale(pipe) == 7.5
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        pipe("a b", guidance_scale=1.0, **options)
        assert not caplog.records
        pipe("a b", guidance_scale=3.0, **options)
        pipe("a b", guidance_scale=3.0, **options)
    assert [record.getMessage() for record in caplog.records] == [
        "these masks already do the work of guidance (scale 3), this call guides once more: expected guidance_scale=1, "
        "which also halves the time"
    ]
    mu.detach(pipe)
