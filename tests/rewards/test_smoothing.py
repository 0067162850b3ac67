"""A reward as its mean over altered copies of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.rewards import FunctionReward, Smoothed


def spot(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0, 10, 10]


def test_the_mean_over_the_same_copies_each_time() -> None:
    pictures = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    seen: list[Tensor] = []

    def mean(given: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(given.detach())
        return given.mean((1, 2, 3))

    reward = Smoothed(FunctionReward(mean), 4, shift=0.1)
    found = reward(pictures, ["a", "b"])
    assert torch.equal(found, reward(pictures, ["a", "b"]))
    assert torch.equal(seen[0], pictures)
    assert len(seen) == 8
    assert all(x.shape == pictures.shape and 0 <= float(x.min()) <= float(x.max()) <= 1 for x in seen)
    torch.testing.assert_close(found.detach(), torch.stack([x.mean((1, 2, 3)) for x in seen[:4]]).mean(0))
    found.sum().backward()
    assert pictures.grad is not None
    assert bool(pictures.grad.isfinite().all())


def test_what_one_pixel_says_is_spread() -> None:
    """A single pixel that pleases the reward pleases its mean less; a large region as much."""
    pictures = torch.zeros(2, 3, 24, 24)
    pictures[0, 0, 10, 10] = 1
    pictures[1, 0, 4:17, 4:17] = 1
    reward = Smoothed(FunctionReward(spot), 8, shift=0.1, noise=0.0)
    one, region = reward(pictures, ["a", "b"]).tolist()
    assert one < 0.5
    assert region == pytest.approx(1.0)


def test_without_alterations_it_is_the_reward() -> None:
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    reward = Smoothed(FunctionReward(lambda p, _: p.mean((1, 2, 3)), "mean"), 3, shift=0.0, noise=0.0, blur=False)
    torch.testing.assert_close(reward(pictures, "a"), pictures.mean((1, 2, 3)))
    assert "mean" in reward.name
    with pytest.raises(mu.RewardError, match="copy"):
        Smoothed(FunctionReward(spot), 0)
