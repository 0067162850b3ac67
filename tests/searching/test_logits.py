"""Logits of a search and their optimiser: noise, gradients and gradient scales are per sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskunet.errors import RewardError
from maskunet.network import Network
from maskunet.relaxation import derive_seed, gumbel_noise
from maskunet.searching import SearchConfig
from maskunet.searching.logits import LogitOptimizer
from maskunet.targets import describe

SEEDS = [4, 7]


def optimizer_for(
    network: Network, seeds: list[int], *, scale_gradients: bool = False, **changes: Any
) -> LogitOptimizer:
    optimizer = LogitOptimizer(
        network,
        seeds,
        SearchConfig(**changes),
        device=torch.device("cpu"),
        scale_gradients=scale_gradients,
        reward_name="mine",
    )
    optimizer.restart()
    return optimizer


@pytest.fixture
def network(pipe: Any) -> Network:
    return describe(pipe.unet, "decoder-attention")


def test_a_draw_has_one_mask_per_sample_by_its_own_noise(network: Network) -> None:
    optimizer = optimizer_for(network, SEEDS, initial_logit=0.5)
    masks = optimizer.draw(3, 2, [0, 1])
    for layer in network.layers:
        assert masks[layer.name].shape == (2, *layer.shape)
        for row, seed in enumerate(SEEDS):
            noise = gumbel_noise(layer.shape, derive_seed(seed, "search", 3, 2, layer.name))
            assert torch.equal(masks[layer.name][row].bool(), noise > -0.5)
    alone = optimizer.draw(3, 2, [1])
    assert all(torch.equal(alone[name][0], masks[name][1]) for name in masks)


def test_a_step_raises_the_logits_that_the_reward_rises_with(network: Network) -> None:
    optimizer = optimizer_for(network, SEEDS, gumbel=False, learning_rate=0.3, initial_logit=2.0)
    name = network.layers[0].name

    def rewards() -> Tensor:
        masks = optimizer.draw(0, 0, [0, 1])
        return masks[name][:, 0].sum(1) - masks[name][:, 1].sum(1)

    optimizer.differentiate(rewards(), [0])
    optimizer.improve([0])
    logits = optimizer.logits[name].detach()
    torch.testing.assert_close(logits[0, 0], torch.full_like(logits[0, 0], 2.3))
    torch.testing.assert_close(logits[0, 1], torch.full_like(logits[0, 1], 1.7))
    assert bool((logits[0, 2:] == 2).all())
    assert bool((logits[1] == 2).all())  # not active
    optimizer.restart()
    assert bool((optimizer.logits[name] == 2).all())


def test_an_overflow_lowers_the_scale_of_its_sample_alone(network: Network) -> None:
    optimizer = optimizer_for(network, SEEDS, gumbel=False, scale_gradients=True)
    masks = optimizer.draw(0, 0, [0, 1])
    name = next(iter(masks))
    optimizer.differentiate(torch.stack([masks[name][0].sum() * 1e38, masks[name][1].sum()]), [0, 1])
    optimizer.improve([0, 1])
    assert optimizer._scales == [64.0, 1024.0]
    assert bool((optimizer.logits[name][0] == 2).all())
    assert bool((optimizer.logits[name][1] > 2).all())


def test_an_overflow_without_scale_names_the_reward(network: Network) -> None:
    optimizer = optimizer_for(network, SEEDS[:1], gumbel=False)
    name = network.layers[0].name
    optimizer.differentiate(optimizer.draw(0, 0, [0])[name].sum((1, 2)) * float("inf"), [0])
    with pytest.raises(RewardError, match="finite gradients of reward 'mine'"):
        optimizer.improve([0])
