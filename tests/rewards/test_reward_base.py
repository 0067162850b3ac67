"""The interface of rewards: values are checked, and rewards add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskunet.errors import DataError, RewardError
from maskunet.rewards import FunctionReward, Reward, WeightedSum

NUMBERS = st.floats(-5, 5)


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def length(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.sum((1, 2, 3)) * 0 + torch.tensor([float(len(p)) for p in prompts])


@dataclass
class Green(Reward):
    """A user's own, without a constructor of the base's."""

    scale: float
    name = "green"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.scale * images[:, 1].mean((1, 2))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_function_and_a_class_are_rewards(images: Tensor) -> None:
    assert torch.equal(FunctionReward(red)(images, "any"), images[:, 0].mean((1, 2)))
    assert FunctionReward(red).name == "red"
    assert FunctionReward(length)(images, ["a", "abc"]).tolist() == [1, 3]
    assert torch.equal(Green(2.0)(images, "any"), 2 * images[:, 1].mean((1, 2)))


@given(a=NUMBERS, b=NUMBERS, c=NUMBERS)
def test_arithmetic_is_linear(a: float, b: float, c: float) -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    prompts = ["x", "yy"]
    f, g = FunctionReward(red), FunctionReward(length)
    total = c * (a * f + g * b) - f
    expected = c * (a * red(images, prompts) + b * length(images, prompts)) - red(images, prompts)
    assert torch.allclose(total(images, prompts), expected, atol=1e-4)


def test_sums_flatten_merge_and_read_well(images: Tensor) -> None:
    f, g = FunctionReward(red), Green(1.0)
    total = 2 * f + g / 4 + f
    assert total.name == "3 red + 0.25 green"
    assert [weight for weight, _ in total.terms] == [3, 0.25]
    assert sum([f, g]).name == "1 red + 1 green"  # type: ignore[union-attr]
    assert (np.float32(2) * f).name == (-(-2 * f)).name == "2 red"


def test_nonsense_arithmetic_is_refused() -> None:
    f = FunctionReward(red)
    for wrong in (lambda: f + 1, lambda: f * f, lambda: f * "2", lambda: f / 0, lambda: f - 1, lambda: True * f):  # type: ignore[operator]
        with pytest.raises(TypeError):
            wrong()
    for weight in (float("nan"), float("inf")):
        with pytest.raises(RewardError, match=f"finite weight for reward 'red', got {weight}"):
            weight * f
    with pytest.raises(RewardError, match="at least one"):
        WeightedSum([])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda p, t: p.mean(), r"shape \(2,\), one value per image, got shape \(\)"),
        (lambda p, t: p.mean((2, 3)), r"got shape \(2, 3\)"),
        (lambda p, t: p.mean((1, 2, 3))[:, None], r"got shape \(2, 1\)"),
        (lambda p, t: [1.0, 2.0], "got list"),
        (lambda p, t: p.mean((1, 2, 3)) * float("nan"), "finite numbers, got"),
        (lambda p, t: p.mean((1, 2, 3)) + float("inf"), "finite numbers, got"),
        (lambda p, t: (p.mean((1, 2, 3)) > 0).long(), "finite numbers, got"),
        (lambda p, t: p.detach().mean((1, 2, 3)), "differentiable"),
    ],
)
def test_a_bad_reward_is_named(images: Tensor, function: object, reason: str) -> None:
    bad = FunctionReward(function, "bad one")  # type: ignore[arg-type]
    for reward in (bad, FunctionReward(red) + 2 * bad):
        with pytest.raises(RewardError, match="reward 'bad one'.*" + reason):
            reward(images.requires_grad_(), "any")


def test_a_gradient_is_required_only_if_the_images_require_one(images: Tensor) -> None:
    cut = FunctionReward(lambda p, t: p.detach().mean((1, 2, 3)), "cut")
    cut(images, "any")
    with torch.no_grad():
        cut(images.requires_grad_(), "any")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (torch.zeros(3, 4, 4), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 4, 4, 4), r"\(B, 3, H, W\)"),
        (torch.zeros(0, 3, 4, 4), "B >= 1"),
        ([1, 2], "got list"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "divide bytes by 255"),
        (torch.full((1, 3, 4, 4), -1.0), r"in \[0, 1\], got values from -1"),
        (torch.full((1, 3, 4, 4), 255.0), "to 255"),
        (torch.full((1, 3, 4, 4), float("nan")), "nan"),
    ],
)
def test_wrong_images_are_refused(wrong: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        FunctionReward(red)(wrong, "any")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        (["one"], "2 prompts, one per image, or one string for all, got 1"),
        ([], "got 0"),
        (["one", 2], "2 prompts as strings, got a int"),
    ],
)
def test_wrong_prompts_are_refused(images: Tensor, prompts: list[object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        FunctionReward(red)(images, prompts)  # type: ignore[arg-type]


def test_only_functions_become_rewards() -> None:
    with pytest.raises(
        RewardError, match=r"expected a reward, or a function \(images, prompts\) -> \(B,\), got str; load "
    ):
        FunctionReward("hpsv2")  # type: ignore[arg-type]


def test_moving_casts_networks_and_keeps_heads() -> None:
    class Learned(Reward):
        name = "learned"

        def __init__(self) -> None:
            self.body, self.last = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
            self.models, self.heads = (self.body,), (self.last,)

        def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            x = self.body(images.mean((2, 3)).to(self.body.weight.dtype))
            return self.last(x.float()).squeeze(-1)

    reward = Learned()
    total = (2 * reward + FunctionReward(red)).to("cpu", torch.bfloat16).enable_gradient_checkpointing()
    assert (reward.body.weight.dtype, reward.last.weight.dtype) == (torch.bfloat16, torch.float32)
    assert total(torch.rand(2, 3, 4, 4), "any").dtype == torch.float32
    with pytest.raises(RewardError, match="floating dtype"):
        total.to(dtype=torch.int64)
