"""Stable Diffusion 2.x, which predicts the velocity: target and weights against the formulas, written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from torch import Tensor

import maskunet as mu
from maskunet.data import CachedLatents, PromptEmbeds
from maskunet.diffusion import diffusion_errors
from maskunet.shapes.scenes import training_scene
from maskunet.training.batches import Batch, BatchSampler
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=4,
    train_batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=4,
    snr_gamma=5.0,
    gumbel=False,
    logging_steps=1,
)


@pytest.fixture
def dataset(sd2_pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(sd2_pipe, [training_scene(i) for i in range(8)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def by_hand(pipe: StableDiffusionPipeline, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
    """Errors and min-SNR weights of a batch, from alpha-bar alone."""
    scheduler = pipe.scheduler
    alpha = torch.cumprod(1 - scheduler.betas, 0)[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
    with torch.no_grad():
        predicted = pipe.unet(noisy, batch.timesteps, batch.prompt_embeds).sample
    errors = (predicted - (velocity if kind == "v_prediction" else batch.noise)).square().mean((1, 2, 3))
    snr = (alpha / (1 - alpha)).flatten()
    return errors, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1 if kind == "v_prediction" else snr)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_the_first_loss_is_the_one_computed_by_hand(
    sd2_pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, kind: str
) -> None:
    # Masks that keep every weight change nothing, whatever sampler the pipeline carries.
    sd2_pipe.scheduler = EulerDiscreteScheduler.from_config(sd2_pipe.scheduler.config, prediction_type=kind)
    masker = mu.MaskGenerator.for_unet(sd2_pipe.unet, mu.MaskGeneratorConfig(initial_logit=5.0), seed=0)
    mu.train(sd2_pipe, masker, dataset, CONFIG, tmp_path, progress=False)
    first = json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[0])
    batches = BatchSampler(sd2_pipe, dataset, PromptEmbeds(sd2_pipe), CONFIG, 1000)
    batch = batches(range(4), seed=CONFIG.seed, dropout=CONFIG.caption_dropout)
    errors, weights = by_hand(sd2_pipe, batch, kind)
    assert first["loss"] == pytest.approx(float((errors * weights).mean()), rel=1e-4)
    scheduler = DDPMScheduler.from_config(sd2_pipe.scheduler.config)
    with torch.no_grad():
        found = diffusion_errors(
            sd2_pipe.unet,
            scheduler,
            batch.latents,
            batch.prompt_embeds,
            batch.noise,
            batch.timesteps,
            **batch.conditions,
        )
    torch.testing.assert_close(found, errors, rtol=1e-4, atol=1e-5)


def test_masks_train_and_generate(sd2_pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    masker = mu.MaskGenerator.for_unet(sd2_pipe.unet, mu.MaskGeneratorConfig(initial_logit=-0.36), seed=0)
    run = mu.train(sd2_pipe, masker, dataset, CONFIG, tmp_path, progress=False)
    assert 0 < run.stats[-1]["density"] < 1

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return sd2_pipe("ab", generator=generator, num_inference_steps=2, output_type="latent").images

    base = sample()
    mu.attach(sd2_pipe, mu.load(tmp_path / "masker", sd2_pipe))
    assert not torch.equal(sample(), base)
