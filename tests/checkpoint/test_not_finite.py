"""Maskers with NaN or Inf in them: no file, no loading, no attaching, and one line that names the tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import maskunet as mu
from maskunet import targets
from maskunet.attaching import attachment_of
from maskunet.errors import CheckpointError, MaskUNetError, SettingError, TargetError
from maskunet.maskers import FixedMasks, Masker, MaskSchedule, MaskTable, RandomMasks

Unet = UNet2DConditionModel
MASKERS: dict[str, Callable[[Unet], Masker]] = {
    "low-rank": lambda unet: mu.LowRankMasker.for_unet(unet, seed=0),
    "paper": lambda unet: mu.MaskGenerator.for_unet(unet, seed=0),
    "table": lambda unet: MaskTable.for_unet(unet),
    "table by sample": lambda unet: MaskTable.for_unet(unet, samples=2),
}


@pytest.fixture(params=list(MASKERS))
def masker(request: pytest.FixtureRequest, sd1: Unet) -> Masker:
    return MASKERS[request.param](sd1)


@pytest.fixture(params=[math.nan, math.inf, -math.inf])
def value(request: pytest.FixtureRequest) -> float:
    return float(request.param)


def poison(masker: Masker, value: float) -> str:
    """Write a value to the last entry of one tensor; return the tensor's name."""
    name, tensor = list(masker.named_parameters())[-1]
    with torch.no_grad():
        tensor.view(-1)[-1] = value
    return name


def refusal(kind: type[MaskUNetError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    return message


def test_saving_is_refused_and_writes_nothing(masker: Masker, value: float, tmp_path: Path) -> None:
    masker.save_pretrained(tmp_path / "good")
    files = {path: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    name = poison(masker, value)
    for folder in (tmp_path / "new", tmp_path / "good"):
        assert name in refusal(CheckpointError, lambda folder=folder: masker.save_pretrained(folder))
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "good").iterdir()} == files


def test_loading_is_refused(masker: Masker, value: float, sd1: Unet, tmp_path: Path) -> None:
    weights = masker.save_pretrained(tmp_path) / "masker.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = value
    save_file(tensors, weights)
    for model in (None, sd1):
        message = refusal(CheckpointError, lambda model=model: mu.load(tmp_path, model))
        assert name in message
        assert str(weights) in message
    assert name in refusal(CheckpointError, lambda: mu.attach(sd1, tmp_path))
    assert attachment_of(sd1) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attaching_is_refused_and_keeps_the_attached_masker(
    masker: Masker, value: float, sd1: Unet, predict: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    former = mu.attach(sd1, mu.LowRankMasker.for_unet(sd1, seed=3), strength=0.5)
    before = predict(sd1)
    name = poison(masker.to(dtype), value)
    assert name in refusal(CheckpointError, lambda: mu.attach(sd1, masker))
    assert attachment_of(sd1) is former
    assert torch.equal(predict(sd1), before)


def test_noise_is_refused(sd1: Unet, value: float) -> None:
    masker = MaskTable.for_unet(sd1)
    noise = {layer.name: torch.zeros(layer.shape) for layer in masker.network.layers}
    name = masker.network.layers[1].name
    noise[name].view(-1)[3] = value
    assert name in refusal(SettingError, lambda: mu.attach(sd1, masker, noise=noise))
    assert attachment_of(sd1) is None


def test_masks_of_other_values_never_enter_a_binary_masker(sd1: Unet, value: float) -> None:
    network = targets.describe(sd1, "decoder-attention")
    layer = network.layers[0]
    masks = torch.ones(1, *layer.shape)
    masks[0, 0, 0] = value
    schedule = MaskSchedule(network, [500.0])
    assert layer.name in refusal(TargetError, lambda: schedule.set(0, {layer.name: masks}))
    assert bool(schedule.get(0, layer.name).all())
    masks[0, 0, 0] = 0.5
    assert layer.name in refusal(TargetError, lambda: schedule.set(0, {layer.name: masks}))
    masks[0, 0, 0] = 0
    schedule.set(0, {layer.name: masks})
    assert torch.equal(schedule.get(0, layer.name).float(), masks)
    masks[0, 0, 0] = value
    assert layer.name in refusal(TargetError, lambda: FixedMasks({layer.name: masks[0]}))


def test_settings_are_numbers(sd1: Unet, value: float) -> None:
    refusal(SettingError, lambda: RandomMasks.for_unet(sd1, density=value))
    refusal(SettingError, lambda: MaskTable.for_unet(sd1, initial_logit=value))
    refusal(SettingError, lambda: MaskTable.for_unet(sd1, tau=value))
    refusal(SettingError, lambda: mu.LowRankMaskerConfig(initial_logit=value))
    refusal(SettingError, lambda: mu.MaskGeneratorConfig(initial_logit=value))
