"""A resumed run recognises its model and its data, and refuses others in one line; some settings may change."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor, nn

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import CheckpointError
from maskunet.maskers import MaskTable
from maskunet.rewards import Reward
from maskunet.training import build_method
from maskunet.training.fingerprints import run_fingerprints

CONFIG = mu.TrainConfig(
    max_train_steps=4,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_scheduler="constant",
    validation_samples=2,
    checkpointing_steps=2,
    use_ema=True,
)
MASK = mu.MaskGeneratorConfig(initial_logit=0.5)
Change = Callable[[StableDiffusionPipeline, CachedLatents], CachedLatents | None]


@pytest.fixture
def data() -> CachedLatents:
    mean = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    time_ids = torch.tensor([[16, 16, 0, 0, 16, 16]]).repeat(8, 1)
    return CachedLatents(mean, torch.full_like(mean, 0.1), tuple(f"{c} b" for c in "abcdefgh"), time_ids)


def go(pipe: Any, data: CachedLatents, folder: Path, name: str = "mask", **changes: Any) -> mu.training.Run:
    config = replace(CONFIG, **changes)
    reward = REWARD if config.objective == "reward" else None
    return mu.train(pipe, build_method(name, pipe, MASK, rank=2), data, config, folder, reward=reward, progress=False)


class HeadReward(Reward):
    """The mean of a layer's output."""

    name = "head"

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.models = [nn.Conv2d(3, 1, 1)]

    def score(self, images: Tensor, prompts: Any) -> Tensor:
        return self.models[0](images).mean((1, 2, 3))


REWARD = HeadReward(0)


def other_weight(module: nn.Module, scale: float = 1.01) -> None:
    with torch.no_grad():
        next(p for p in module.parameters() if p.ndim > 1).mul_(scale)


def one_other_layer(pipe: StableDiffusionPipeline, _: CachedLatents) -> None:
    other_weight(pipe.unet.mid_block)


def other_text_encoder(pipe: StableDiffusionPipeline, _: CachedLatents) -> None:
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    other_weight(pipe.text_encoder)


def other_schedule(pipe: StableDiffusionPipeline, _: CachedLatents) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.03)


def other_prediction(pipe: StableDiffusionPipeline, _: CachedLatents) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")


def a_lora(pipe: StableDiffusionPipeline, _: CachedLatents) -> None:
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), adapter_name="user")


def other_latents(_: StableDiffusionPipeline, data: CachedLatents) -> CachedLatents:
    return replace(data, mean=data.mean.flip(0))


def other_deviations(_: StableDiffusionPipeline, data: CachedLatents) -> CachedLatents:
    return replace(data, std=data.std * 2)


def other_captions(_: StableDiffusionPipeline, data: CachedLatents) -> CachedLatents:
    return replace(data, captions=(*data.captions[:-1], "z b"))


def other_sizes(_: StableDiffusionPipeline, data: CachedLatents) -> CachedLatents:
    return replace(data, time_ids=None)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (one_other_layer, "unet"),
        (other_text_encoder, "text_encoder"),
        (other_schedule, "noise_schedule"),
        (other_prediction, "noise_schedule"),
        (a_lora, "adapters"),
        (other_latents, "latents"),
        (other_deviations, "latents"),
        (other_captions, "captions"),
        (other_sizes, "time_ids"),
    ],
)
def test_another_model_or_other_data_of_the_same_count_are_refused(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, change: Change, name: str
) -> None:
    go(pipe, data, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = change(pipe, data) or data
    with pytest.raises(CheckpointError, match=r"fingerprint") as caught:
        go(pipe, data, tmp_path, max_train_steps=6)
    message = str(caught.value)
    assert message.startswith(f"expected the settings of the run in {tmp_path}, got another {name} (fingerprint ")
    assert message.count("fingerprint") == 1
    assert "\n" not in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": 5}, "seed 5 instead of 0"),
        ({"snr_gamma": 5.0}, "snr_gamma 5.0 instead of None"),
        ({"name": "lora"}, "name lora instead of mask"),
        ({"objective": "reward"}, "objective reward instead of diffusion"),
    ],
)
def test_other_seeds_objectives_and_methods_are_refused(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    go(pipe, data, tmp_path)
    with pytest.raises(CheckpointError, match=match):
        go(pipe, data, tmp_path, **changes)


@pytest.mark.parametrize("name", ["mask", "lora", "mask+lora"])
def test_another_target_set_is_refused(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, name: str
) -> None:
    go(pipe, data, tmp_path, name)
    method = build_method(name, pipe, mu.MaskGeneratorConfig(targets="all", initial_logit=0.5), rank=2)
    with pytest.raises(CheckpointError, match=r"another (masker|lora)|targets all instead of decoder-attention"):
        mu.train(pipe, method, data, CONFIG, tmp_path, progress=False)


def test_the_reward_is_recognised_by_its_weights(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path
) -> None:
    options = {"reward_num_inference_steps": 2, "validation_rewards": 0, "validation_samples": 0}
    config = replace(CONFIG, objective="reward", max_train_steps=1, **options)
    method = build_method("lora", pipe, MASK, rank=2)
    mu.train(pipe, method, data, config, tmp_path, reward=HeadReward(0), progress=False)
    mu.train(pipe, method, data, config, tmp_path, reward=HeadReward(0), progress=False)
    with pytest.raises(CheckpointError, match=r"got another reward \(fingerprint"):
        mu.train(pipe, method, data, config, tmp_path, reward=HeadReward(1), progress=False)
    pipe.vae = copy.deepcopy(pipe.vae)
    other_weight(pipe.vae)
    with pytest.raises(CheckpointError, match=r"got another vae \(fingerprint"):
        mu.train(pipe, method, data, config, tmp_path, reward=HeadReward(0), progress=False)


def test_more_steps_go_on_as_one_run_of_all_of_them(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path
) -> None:
    go(pipe, data, tmp_path / "part")
    changes = {
        "max_train_steps": 8,
        "checkpointing_steps": 8,
        "validation_samples": 4,
        "validation_steps": 3,
        "logging_steps": 1,
        "validation_prompts": ("a b",),
        "validation_num_inference_steps": 1,
        "checkpoints_total_limit": 1,
    }
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)  # another sampler of the same schedule
    mu.attach(pipe, MaskTable.for_unet(pipe.unet, initial_logit=-5.0))  # the trained masker replaces it
    more = go(pipe, data, tmp_path / "part", **changes).masker.state_dict()
    whole = go(pipe, data, tmp_path / "whole", max_train_steps=8).masker.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in more.items())
    assert json.loads((tmp_path / "part" / "config.json").read_text())["config"]["max_train_steps"] == 8
    with pytest.raises(
        CheckpointError, match=r"expected max_train_steps >= 8, the steps that .* has done, got 4; raise"
    ):
        go(pipe, data, tmp_path / "part")


def test_the_schedule_has_the_new_number_of_steps(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path
) -> None:
    """After 4 of 8 steps the rate is half the peak; the end of the former schedule was 0."""
    changes = {"lr_scheduler": "cosine", "lr_warmup_steps": 0, "validation_samples": 0, "logging_steps": 1}
    go(pipe, data, tmp_path, **changes)
    before = torch.load(tmp_path / "checkpoint-000004" / "state.pt", weights_only=True)
    assert before["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0)
    stats = go(pipe, data, tmp_path, **changes, max_train_steps=8, checkpointing_steps=5).stats
    after = torch.load(tmp_path / "checkpoint-000005" / "state.pt", weights_only=True)
    step = max(float((after["trained"][k] - v).abs().max()) for k, v in before["trained"].items())
    assert step == pytest.approx(0.01, rel=0.5)  # a step of Adam is about the rate
    assert stats[-1]["lr"] == pytest.approx(0)


def test_gradient_checkpointing_may_change(pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path) -> None:
    go(pipe, data, tmp_path / "part")
    part = go(pipe, data, tmp_path / "part", max_train_steps=6, gradient_checkpointing=True).masker.state_dict()
    whole = go(pipe, data, tmp_path / "whole", max_train_steps=6).masker.state_dict()
    for name, value in part.items():
        torch.testing.assert_close(value, whole[name], atol=1e-4, rtol=1e-3)


def test_a_run_without_fingerprints_resumes_with_a_warning(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go(pipe, data, tmp_path / "old")
    path = tmp_path / "old" / "checkpoint-000004" / "state.pt"
    state = torch.load(path, weights_only=True)
    settings = json.loads(state["settings"])
    del settings["fingerprints"]
    torch.save(state | {"settings": json.dumps(settings)}, path)
    with caplog.at_level(logging.WARNING):
        more = go(pipe, data, tmp_path / "old", max_train_steps=6).masker.state_dict()
    assert len(caplog.records) == 1
    assert "holds no fingerprints" in caplog.text
    whole = go(pipe, data, tmp_path / "whole", max_train_steps=6).masker.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in more.items())


def test_fingerprints_do_not_depend_on_how_a_model_is_held(pipe: StableDiffusionPipeline, data: CachedLatents) -> None:
    """Neither on masks, adapters that are off, layouts in memory, compilation and offload, nor on the caller's flags."""
    start = run_fingerprints(pipe, data)
    assert start["adapters"] is start["masker"] is None
    pipe.unet.to(memory_format=torch.channels_last).requires_grad_(False)
    mu.attach(pipe, MaskTable.for_unet(pipe.unet))
    a_lora(pipe, data)
    lora = run_fingerprints(pipe, data)
    assert lora == start | {"adapters": lora["adapters"]}
    assert lora["adapters"] is not None
    pipe.unet.disable_lora()
    assert run_fingerprints(pipe, data) == start
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
    assert run_fingerprints(pipe, data) == start
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert any(p.is_meta for p in pipe.unet.parameters())
    assert run_fingerprints(pipe, data) == start


def test_adapters_and_masks_that_stay_in_effect_are_recognised(
    pipe: StableDiffusionPipeline, data: CachedLatents
) -> None:
    a_lora(pipe, data)
    prints = [run_fingerprints(pipe, data)["adapters"]]
    pipe.unet.set_adapters(["user"], [0.5])
    prints.append(run_fingerprints(pipe, data)["adapters"])
    other_weight(next(m for n, m in pipe.unet.named_modules() if n.endswith("lora_A.user")))
    prints.append(run_fingerprints(pipe, data)["adapters"])
    for logit in (0.1, 0.2):
        attachment = mu.attach(pipe, MaskTable.for_unet(pipe.unet, initial_logit=logit))
        prints.append(run_fingerprints(pipe, data, None, attachment)["masker"])
    attachment.strength = 0.5
    prints.append(run_fingerprints(pipe, data, None, attachment)["masker"])
    assert None not in prints
    assert len(set(prints)) == 6
