"""Stable Diffusion XL in the trainer: two text encoders, pooled embeddings and time ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

import maskunet as mu
from maskunet.data import CachedLatents, PromptEmbeds, sample_index
from maskunet.shapes.scenes import training_scene
from maskunet.training import build_method
from maskunet.training.batches import BatchSampler
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6,
    train_batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=4,
    checkpointing_steps=3,
    cache_prompt_embeds=True,
    validation_prompts=("ab",),
    validation_num_inference_steps=2,
)
MASK = mu.MaskGeneratorConfig(initial_logit=-0.36)  # near the threshold, so that six steps cross it
# diffusers' Euler scheduler turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def dataset(sdxl_pipe: StableDiffusionXLPipeline) -> CachedLatents:
    cached = encode_scenes(sdxl_pipe, [training_scene(i) for i in range(8)])
    ids = torch.tensor([[20.0 + i, 30.0, float(i), 1.0, 16.0, 16.0] for i in range(8)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions, ids)


def sample(pipe: Any) -> Tensor:
    return pipe("a red circle", generator=torch.Generator().manual_seed(0), **OPTIONS).images


def state(folder: Path) -> dict[str, Tensor]:
    return torch.load(sorted(folder.glob("checkpoint-*"))[-1] / "state.pt", weights_only=True)["trained"]


def test_embeddings_are_the_pipelines_own(sdxl_pipe: StableDiffusionXLPipeline) -> None:
    captions = ["a red circle", "two blue stars"]
    expected, _, pooled, _ = sdxl_pipe.encode_prompt(captions, do_classifier_free_guidance=False)
    for kept, tolerance in ((PromptEmbeds(sdxl_pipe), 0.0), (PromptEmbeds(sdxl_pipe, captions), 2e-3)):
        found = kept(captions)
        assert found[1] is not None
        torch.testing.assert_close(found[0], expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(found[1], pooled, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kept", [(), ("", "a red circle")])
@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_caption_is_what_guidance_takes(
    sdxl_pipe: StableDiffusionXLPipeline, kept: tuple[str, ...], zeros: bool
) -> None:
    sdxl_pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    _, negative, _, pooled = sdxl_pipe.encode_prompt("a red circle", do_classifier_free_guidance=True)
    found = PromptEmbeds(sdxl_pipe, kept)(["a red circle", ""])
    assert found[1] is not None
    torch.testing.assert_close(found[0][1:], negative, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found[1][1:], pooled, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("with_ids", [True, False])
def test_batches_carry_pooled_embeddings_and_time_ids(
    sdxl_pipe: StableDiffusionXLPipeline, dataset: CachedLatents, with_ids: bool
) -> None:
    data = dataset if with_ids else CachedLatents(dataset.mean, dataset.std, dataset.captions)
    batch = BatchSampler(sdxl_pipe, data, PromptEmbeds(sdxl_pipe), CONFIG, 1000)(range(4), seed=3, dropout=0.0)
    conditions = batch.conditions["added_cond_kwargs"]
    indices = [sample_index(p, 8, 3) for p in range(4)]
    uncropped = sdxl_pipe._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 32).expand(4, 6)
    assert dataset.time_ids is not None
    assert torch.equal(conditions["time_ids"], dataset.time_ids[indices] if with_ids else uncropped)
    _, _, pooled, _ = sdxl_pipe.encode_prompt([data.captions[i] for i in indices], do_classifier_free_guidance=False)
    torch.testing.assert_close(conditions["text_embeds"], pooled)


@pytest.mark.parametrize("cached", [True, False])
def test_masks_train_and_generate(
    sdxl_pipe: StableDiffusionXLPipeline, dataset: CachedLatents, tmp_path: Path, cached: bool
) -> None:
    base = sample(sdxl_pipe)
    method = build_method("mask", sdxl_pipe, MASK)
    before = {n: p.clone() for n, p in method.masker.named_parameters()}  # type: ignore[attr-defined]
    config = mu.TrainConfig(**{**vars(CONFIG), "cache_prompt_embeds": cached})
    run = mu.train(sdxl_pipe, method, dataset, config, tmp_path, progress=False)
    unchanged = [n for n, p in run.masker.named_parameters() if torch.equal(p, before[n])]
    assert not unchanged
    assert torch.equal(sample(sdxl_pipe), base)
    assert 0 < run.stats[-1]["density"] < 1
    assert (tmp_path / "validation" / "step-000006" / "00000.png").is_file()
    other = copy.deepcopy(sdxl_pipe)
    mu.attach(other, mu.load(tmp_path / "masker", other))
    mu.attach(sdxl_pipe, run.masker)
    assert torch.equal(sample(other), sample(sdxl_pipe))
    assert not torch.equal(sample(other), base)


def test_lora_trains_and_loads(sdxl_pipe: StableDiffusionXLPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    base = sample(sdxl_pipe)
    method = build_method("lora", sdxl_pipe, MASK, rank=2)
    mu.train(sdxl_pipe, method, dataset, CONFIG, tmp_path, progress=False)
    assert all(v.any() for k, v in state(tmp_path).items() if "lora_B" in k)
    assert torch.equal(sample(sdxl_pipe), base)
    sdxl_pipe.load_lora_weights(tmp_path / "lora")
    assert not torch.equal(sample(sdxl_pipe), base)


@pytest.mark.parametrize("name", ["mask", "lora"])
def test_stopped_and_resumed_equals_uninterrupted(
    sdxl_pipe: StableDiffusionXLPipeline, dataset: CachedLatents, tmp_path: Path, name: str
) -> None:
    def go(folder: Path) -> list[dict[str, Any]]:
        method = build_method(name, sdxl_pipe, MASK, rank=2)
        return mu.train(sdxl_pipe, method, dataset, CONFIG, folder, progress=False).stats

    uninterrupted = go(tmp_path / "uninterrupted")
    go(tmp_path / "part")
    (tmp_path / "part" / "checkpoint-000006").rename(tmp_path / "part" / "checkpoint-000006.part")
    assert go(tmp_path / "part") == uninterrupted
    states = [state(tmp_path / n) for n in ("uninterrupted", "part")]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
