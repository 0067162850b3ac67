"""Both sides of a comparison are one network, except for what was trained: adapters and masks of the caller are in both."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import DataError
from maskunet.maskers import MaskTable
from maskunet.training import build_method
from maskunet.training.checkpoints import Checkpoints

METHODS = ["mask", "lora", "mask+lora"]
TARGETS = ["attentions.0.transformer_blocks.0.attn2.to_v"]
CONFIG = mu.TrainConfig(
    max_train_steps=1,
    train_batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=1e-12,  # nothing is learnt, so base and trained losses are equal
    lr_warmup_steps=0,
    validation_samples=8,
    caption_dropout=0.0,
)


@pytest.fixture
def data() -> CachedLatents:
    mean = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return CachedLatents(mean, torch.full_like(mean, 0.1), tuple(f"{c} b" for c in "abcdefgh"))


def add_lora(pipe: StableDiffusionPipeline, name: str, seed: int, targets: list[str] | None = None) -> None:
    """Add a LoRA that changes the prediction by much."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=targets or ["to_q", "to_v"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        pipe.unet.add_adapter(config, adapter_name=name)
    with torch.no_grad():
        for parameter_name, parameter in pipe.unet.named_parameters():
            if f".{name}." in parameter_name:
                parameter.mul_(8.0)


def add_masker(pipe: StableDiffusionPipeline) -> MaskTable:
    """Attach masks that switch half of all weights off."""
    masker = MaskTable.for_unet(pipe.unet, initial_logit=0.5)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter[..., ::2] = -5.0
    mu.attach(pipe, masker)
    return masker


def adapters(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Active adapters, their scales and whether they are on, by layer."""
    return {
        name: (module.active_adapters, module.disable_adapters, dict(module.scaling))
        for name, module in pipe.unet.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def gain(pipe: StableDiffusionPipeline, name: str, data: CachedLatents, folder: Path) -> tuple[float, float]:
    """The gain of nothing learnt, and the loss of the first step."""
    mask = mu.MaskGeneratorConfig(targets=TARGETS, initial_logit=0.5)
    method = build_method(name, pipe, mask, gumbel=False, rank=2)
    last = mu.train(pipe, method, data, CONFIG, folder, progress=False).stats[-1]
    return last["gain"], last["loss"]


@pytest.mark.parametrize("name", METHODS)
def test_active_loras_are_in_both_sides_and_in_training(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, name: str
) -> None:
    _, plain_loss = gain(pipe, name, data, tmp_path / "plain")
    add_lora(pipe, "first", 1)
    add_lora(pipe, "second", 2)
    add_lora(pipe, "unused", 3, ["to_k"])
    pipe.unet.set_adapters(["first", "second"], [0.7, 0.4])
    before, state = adapters(pipe), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    difference, loss = gain(pipe, name, data, tmp_path / "lora")
    assert difference == pytest.approx(0, abs=1e-6)
    assert abs(loss - plain_loss) > 1e-2
    assert adapters(pipe) == before
    after = pipe.unet.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(v, after[k]) for k, v in state.items())
    files = [path.name for path in (tmp_path / "lora").rglob("*.safetensors") if "lora" in path.parent.name]
    assert len(files) == ("lora" in name)


@pytest.mark.parametrize("name", ["lora", "mask+lora"])
def test_loras_that_are_off_stay_off(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, name: str
) -> None:
    plain = gain(pipe, name, data, tmp_path / "plain")
    add_lora(pipe, "off", 1)
    pipe.unet.disable_lora()
    before = adapters(pipe)
    assert gain(pipe, name, data, tmp_path / "off") == pytest.approx(plain, abs=1e-6)
    assert adapters(pipe) == before


def test_only_the_new_lora_is_trained_and_saved(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path
) -> None:
    add_lora(pipe, "user", 1)
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    config = mu.TrainConfig(**{**vars(CONFIG), "learning_rate": 0.01, "max_train_steps": 3})
    mu.train(pipe, build_method("lora", pipe, rank=2), data, config, tmp_path, progress=False)
    trained = torch.load(tmp_path / "checkpoint-000003" / "state.pt", weights_only=True)["trained"]
    assert trained
    assert all(".maskunet_training." in name for name in trained)
    after = pipe.unet.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(v, after[k]) for k, v in state.items())


@pytest.mark.parametrize("name", ["lora", "full"])
def test_an_attached_masker_is_in_both_sides_of_other_methods(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, name: str
) -> None:
    _, plain_loss = gain(pipe, name, data, tmp_path / "plain")
    masker = add_masker(pipe).train()
    difference, loss = gain(pipe, name, data, tmp_path / "masked")
    assert difference == pytest.approx(0, abs=1e-6)
    assert abs(loss - plain_loss) > 1e-3
    assert masker.training
    assert all(p.grad is None and p.requires_grad for p in masker.parameters())


@pytest.mark.parametrize("name", ["mask", "mask+lora"])
def test_a_trained_masker_replaces_the_attached_one_in_both_sides(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path, name: str
) -> None:
    plain = gain(pipe, name, data, tmp_path / "plain")
    add_masker(pipe)
    assert gain(pipe, name, data, tmp_path / "masked") == pytest.approx(plain, abs=1e-6)


def test_full_fine_tuning_refuses_a_lora_in_one_line(
    pipe: StableDiffusionPipeline, data: CachedLatents, tmp_path: Path
) -> None:
    add_lora(pipe, "user", 1)
    with pytest.raises(
        DataError, match=r"expected a U-Net without LoRA for full fine-tuning, got user; call .*unload"
    ):
        mu.train(pipe, build_method("full", pipe), data, CONFIG, tmp_path / "run", progress=False)
    assert not Checkpoints(tmp_path / "run", {}).saved()
