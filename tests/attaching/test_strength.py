"""A strength between the base model and its masks, for all blocks, by block, or by timestep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import maskunet as mu
from maskunet.errors import SettingError
from maskunet.maskers import RandomMasks

Predict = Callable[..., Tensor]


def random_masks(unet: diffusers.UNet2DConditionModel) -> RandomMasks:
    return RandomMasks.for_unet(unet, density=0.7, seed=1, every_step=False)


def test_nought_is_the_base_and_one_the_masks(sd1: Any, predict: Predict) -> None:
    base = predict(sd1)
    attachment = mu.attach(sd1, random_masks(sd1))
    masked = predict(sd1)
    attachment.strength = 0.0
    assert torch.equal(predict(sd1), base)
    attachment.strength = 1
    assert torch.equal(predict(sd1), masked)
    mu.attach(sd1, random_masks(sd1), strength=0.5)
    halfway = predict(sd1)
    assert not torch.equal(halfway, base)
    assert not torch.equal(halfway, masked)


def test_a_layer_has_the_weight_of_the_formula(sd1: Any, predict: Predict) -> None:
    masker = random_masks(sd1)
    mu.attach(sd1, masker, strength=0.3)
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in masker.network.layers:
        sd1.get_submodule(layer.name).register_forward_hook(
            lambda module, args, output, name=layer.name: calls.update({name: (args[0], output)})
        )
    with mu.record(sd1) as trace:
        predict(sd1)
    assert len(calls) == len(masker.network.layers)
    for name, (x, output) in calls.items():
        module = sd1.get_submodule(name)
        weight = module.weight * (1 - 0.3 * (1 - trace.masks[name][0].float()))
        torch.testing.assert_close(output, F.linear(x, weight, module.bias), atol=1e-5, rtol=1e-4)


def test_by_block_and_by_timestep(sd1: Any, predict: Predict) -> None:
    base = predict(sd1)
    attachment = mu.attach(sd1, random_masks(sd1))
    masked = predict(sd1)
    blocks = [block.name for block in attachment.masker.network.blocks]
    attachment.strength = dict.fromkeys(blocks, 0.0)
    assert torch.equal(predict(sd1), base)
    attachment.strength = {blocks[0]: 0.0}
    one_block = predict(sd1)
    assert not torch.equal(one_block, base)
    assert not torch.equal(one_block, masked)
    attachment.strength = lambda timestep: 1.0 if timestep is not None and timestep > 300 else 0.0
    assert torch.equal(predict(sd1, timestep=500), masked)
    mu.detach(sd1)
    late = predict(sd1, timestep=100)
    mu.attach(sd1, random_masks(sd1), strength=lambda timestep: float((timestep or 0) > 300))
    assert torch.equal(predict(sd1, timestep=100), late)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "much", None, True, 10**400, {"up_blocks.1": 2}])
def test_bad_strengths_are_refused_and_nothing_is_attached(sd1: Any, strength: Any) -> None:
    with pytest.raises(SettingError, match=r"number >= 0 and <= 1"):
        mu.attach(sd1, random_masks(sd1), strength=strength)
    assert not any("forward" in module.__dict__ for module in sd1.modules())


def test_a_function_that_returns_nonsense(sd1: Any, predict: Predict) -> None:
    mu.attach(sd1, random_masks(sd1), strength=lambda timestep: 3.0)
    with pytest.raises(SettingError, match="strength function"):
        predict(sd1)


@pytest.mark.parametrize("strength", [{"up_block.1": 0.5}, {1: 0.5}])
def test_strengths_of_unknown_blocks_are_refused(sd1: Any, strength: Any) -> None:
    with pytest.raises(SettingError, match=r"blocks \(.*up_blocks\.1.*\), got"):
        mu.attach(sd1, random_masks(sd1), strength=strength)
    assert not any("forward" in module.__dict__ for module in sd1.modules())
