"""The state of a run: restored on the device of its parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import maskunet as mu
from maskunet.training import LoraMethod
from maskunet.training.state import TrainingState, build_state

CONFIG = mu.TrainConfig(max_train_steps=8, learning_rate=0.1, lr_warmup_steps=0, use_ema=True, ema_decay=0.9)


def new_state(device: str, config: mu.TrainConfig = CONFIG) -> TrainingState:
    torch.manual_seed(0)
    return build_state(nn.Linear(3, 2).to(device), LoraMethod(), config, None)


def step(state: TrainingState) -> None:
    for parameter in state.parameters:
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.schedule.step()
    assert state.ema is not None
    state.ema.step(state.parameters)


def saved_on_the_cpu() -> dict[str, Any]:
    state = new_state("cpu")
    for _ in range(3):
        step(state)
    return copy.deepcopy(state.to_save(3))


def test_everything_moves_to_the_device_of_the_parameters() -> None:
    """A checkpoint is read to the CPU; "meta" stands for a GPU."""
    state = new_state("meta")
    assert state.load(saved_on_the_cpu()) == 3
    step(state)
    assert state.ema is not None
    assert state.ema.optimization_step == 4
    moments = [v for values in state.optimizer.state.values() for k, v in values.items() if k != "step"]
    assert len(moments) == 4
    assert {t.device.type for t in (*state.ema.shadow_params, *moments)} == {"meta"}


def test_a_restored_state_goes_on_as_the_saved_one() -> None:
    uninterrupted, restored = new_state("cpu"), new_state("cpu")
    for _ in range(3):
        step(uninterrupted)
    restored.load(copy.deepcopy(uninterrupted.to_save(3)))
    for state in (uninterrupted, restored):
        step(state)
    assert uninterrupted.ema is not None
    assert restored.ema is not None
    pairs = zip(
        (*uninterrupted.parameters, *uninterrupted.ema.shadow_params),
        (*restored.parameters, *restored.ema.shadow_params),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)
