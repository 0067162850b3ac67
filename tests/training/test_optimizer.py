"""8-bit Adam: it trains and resumes on the devices that bitsandbytes supports, and is one clear error elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import DataError
from maskunet.maskers import MaskTable
from maskunet.shapes.scenes import training_scene
from maskunet.training.optimizer import build_optimizer
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    validation_samples=4,
    checkpointing_steps=3,
    use_8bit_adam=True,
)


def build() -> torch.optim.Optimizer:
    return build_optimizer([nn.Parameter(torch.zeros(8192))], 1e-3, CONFIG)


def pretend(monkeypatch: pytest.MonkeyPatch, optimizer: Any) -> None:
    package, module = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    module.AdamW8bit = optimizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)


def tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    """Tensors of an optimiser's state; some versions keep the quantised ones in a dict of their own."""
    inner = [t for v in state.values() if isinstance(v, dict) for t in tensors(v)]
    return inner + [v for v in state.values() if isinstance(v, torch.Tensor)]


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(DataError, match=r"not installed; pip install 'maskunet\[8bit\]'"):
        build()


def test_device_that_is_not_supported_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(torch.optim.AdamW):
        """What bitsandbytes 0.45 does on a CPU."""

        def step(self, closure: Any = None) -> Any:
            raise NameError("name 'str2optimizer8bit_blockwise' is not defined")

    pretend(monkeypatch, Old)
    with pytest.raises(DataError, match=r"fails on cpu \(name .* is not defined\); train on a CUDA GPU, upgrade"):
        build()


def test_settings_reach_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch.optim.AdamW)
    group = build().param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 0.01)


def test_masks_train_and_resume_in_8_bits(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)])
    dataset = CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)
    start = MaskTable.for_unet(pipe.unet, ["to_q", "conv1"], initial_logit=-0.36).state_dict()

    def go(folder: Path) -> dict[str, Any]:
        table = MaskTable.for_unet(pipe.unet, ["to_q", "conv1"], initial_logit=-0.36)
        try:
            mu.train(pipe, table, dataset, CONFIG, folder, progress=False)
        except DataError as error:
            pytest.skip(str(error))
        return torch.load(folder / "checkpoint-000006" / "state.pt", weights_only=True)

    uninterrupted = go(tmp_path / "uninterrupted")
    go(tmp_path / "part")
    (tmp_path / "part" / "checkpoint-000006").rename(tmp_path / "part" / "checkpoint-000006.part")
    resumed = go(tmp_path / "part")
    assert not any(torch.equal(v, start[k]) for k, v in uninterrupted["trained"].items())
    assert all(torch.equal(v, resumed["trained"][k]) for k, v in uninterrupted["trained"].items())
    kinds = {t.dtype for state in uninterrupted["optimizer"]["state"].values() for t in tensors(state)}
    assert torch.uint8 in kinds
