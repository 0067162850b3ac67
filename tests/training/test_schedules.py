"""The noise that a run adds: by the pipeline's own schedule and prediction type, in float32 whatever the dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import maskunet as mu
from maskunet.data import CachedLatents, PromptEmbeds
from maskunet.errors import DataError
from maskunet.shapes.scenes import training_scene
from maskunet.training import prediction_errors
from maskunet.training.batches import BatchSampler
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=1,
    train_batch_size=4,
    gradient_accumulation_steps=1,
    validation_samples=4,
    gumbel=False,
    logging_steps=1,
)


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(8)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def masker(pipe: StableDiffusionPipeline) -> mu.MaskGenerator:
    """Masks that keep every weight, so that the first loss is the base model's."""
    return mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=5.0), seed=0)


def first_loss(folder: Path) -> float:
    return float(json.loads((folder / "stats.jsonl").read_text().splitlines()[0])["loss"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LCMScheduler", {}),
        ("TCDScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("DDPMScheduler", {"trained_betas": [0.001] * 1000}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
)
def test_the_first_loss_is_that_of_the_pipelines_own_schedule(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    pipe.scheduler = getattr(diffusers, name)(**options)
    mu.train(pipe, masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    batches = BatchSampler(pipe, dataset, PromptEmbeds(pipe), CONFIG, 1000)
    batch = batches(range(4), seed=CONFIG.seed, dropout=CONFIG.caption_dropout)
    alpha = pipe.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    target = {
        "epsilon": batch.noise,
        "v_prediction": alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents,
        "sample": batch.latents,
    }[options.get("prediction_type", "epsilon")]
    with torch.no_grad():
        predicted = pipe.unet(noisy, batch.timesteps, batch.prompt_embeds).sample
    assert first_loss(tmp_path) == pytest.approx(float((predicted - target).square().mean()), rel=1e-4)


def test_a_scheduler_without_a_noise_schedule_is_refused_before_anything_is_written(
    pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(DataError, match=r"EDMEulerScheduler has none; set pipe\.scheduler to"):
        mu.train(pipe, masker(pipe), "a folder that is not there", CONFIG, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_in_bfloat16_adds_noise_in_float32(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and in validation; only the U-Net's input is cast."""
    pipe.unet.to(torch.bfloat16)  # the other networks are shared by the tests
    calls: list[tuple[Tensor, ...]] = []
    real = prediction_errors.diffusion_errors

    def recorded(unet: Any, schedule: Any, *inputs: Tensor, **conditions: Any) -> Tensor:
        hook = unet.register_forward_pre_hook(lambda _, args: calls.append((*inputs, args[0])))
        try:
            return real(unet, schedule, *inputs, **conditions)
        finally:
            hook.remove()

    monkeypatch.setattr(prediction_errors, "diffusion_errors", recorded)
    mu.train(pipe, masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    assert len(calls) == 4  # the base's validation, a step, the masker's validation and its density
    for latents, embeds, noise, timesteps, noisy in calls:
        assert latents.dtype == noise.dtype == torch.float32
        assert embeds.dtype == noisy.dtype == torch.bfloat16
        alpha = pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        expected = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        assert torch.equal(noisy, expected.to(torch.bfloat16))
