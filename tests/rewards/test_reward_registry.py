"""Rewards by name: public ones, those that packages declare, and weighted sums."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

import pytest
import torch

import maskunet as mu
from maskunet.errors import RewardError
from maskunet.rewards import WeightedSum, as_reward, load, names, parse_reward
from maskunet.rewards.registry import BUILT_IN

MODULE = """
from maskunet.rewards import FunctionReward, Reward

def red(images, prompts):
    return images[:, 0].mean((1, 2))

class Green(Reward):
    def __init__(self, scale=1.0):
        self.scale = scale
    def score(self, images, prompts):
        return self.scale * images[:, 1].mean((1, 2))

class Saved(Reward):
    name = "saved"
    @classmethod
    def from_pretrained(cls, source="default", *, twist=0):
        if twist > 1:
            raise OSError("weights are missing\\nsecond line")
        reward = cls()
        reward.source, reward.twist = source, twist
        return reward
    def score(self, images, prompts):
        return images.mean((1, 2, 3))

blue = FunctionReward(lambda images, prompts: images[:, 2].mean((1, 2)), "my blue")
number = 7
"""
DECLARED = """[maskunet.rewards]
red = my_rewards:red
green = my_rewards:Green
saved = my_rewards:Saved
blue = my_rewards:blue
number = my_rewards:number
broken = my_rewards:nothing
hpsv2 = my_rewards:red
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that declares rewards."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    info = tmp_path / "my_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(DECLARED)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("package")
def test_a_package_declares_functions_classes_and_instances(images: torch.Tensor) -> None:
    assert {"red", "green", "saved", "blue"} < set(names())
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        assert torch.allclose(
            load(name, device="cpu", dtype=torch.float32)(images, ""), images[:, channel].mean((1, 2))
        )
    assert [load(name).name for name in ("red", "green", "blue", "saved")] == ["red", "green", "my blue", "saved"]
    assert load("green", scale=2.0)(images, "").tolist() == (2 * images[:, 1].mean((1, 2))).tolist()
    saved = load("saved", "there", twist=1)
    assert (saved.source, saved.twist) == ("there", 1)  # type: ignore[attr-defined]
    assert load("saved").source == "default"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("package")
def test_descriptions_become_sums(images: torch.Tensor) -> None:
    assert parse_reward("red").name == "red"
    for text in ("red:2, green", ["red:2", "green"], "red:2,green:1"):
        total = parse_reward(text, device="cpu")
        assert isinstance(total, WeightedSum)
        assert total.name == "2 red + 1 green"
        expected = 2 * images[:, 0].mean((1, 2)) + images[:, 1].mean((1, 2))
        assert torch.allclose(total(images, ""), expected)
    assert parse_reward("red:-1e-1").name == "-0.1 red"
    sourced = parse_reward("saved=a/b:c:0.5")
    assert isinstance(sourced, WeightedSum)
    assert (sourced.terms[0][0], sourced.terms[0][1].source) == (0.5, "a/b:c")  # type: ignore[attr-defined]
    assert parse_reward("saved=a:b").source == "a:b"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("package")
def test_a_wrong_description_or_package_ends_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    for wrong, reason in (
        ("hps", r"expected a reward among image-reward, hpsv2, .*, red, saved, .*, got 'hps'; .*'maskunet\.rewards'"),
        ("red:five", r"expected a finite weight after the colon, as in 'hpsv2:5', got 'red:five'"),
        ("red:nan", "finite weight after the colon"),
        ("red:inf", "finite weight after the colon"),
        ("red:1e999", "finite weight after the colon"),
        ("saved=folder:nan", "finite weight after the colon"),
        ("hpsv2:nan", "finite weight after the colon"),  # before anything is downloaded
        ("", "expected rewards like"),
        (" , ", "expected rewards like"),
        ("number", r"my_rewards:number to be a function .* for reward 'number', got int"),
        ("broken", r"import reward 'broken' from my_rewards:nothing, could not: .*nothing"),
        ("red=there", "no options for reward 'red', my_rewards:red takes no source"),
    ):
        with pytest.raises(RewardError, match=reason) as caught:
            parse_reward(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(RewardError, match="takes no scale"):
        load("red", scale=2.0)
    with pytest.raises(
        RewardError, match=r"build reward 'saved' from my_rewards:Saved, could not: weights are missing$"
    ):
        load("saved", twist=2)
    with pytest.raises(RewardError, match=r"build reward 'green' .*unexpected keyword argument 'size'"):
        load("green", size=1)
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        assert names().count("hpsv2") == 1
    assert "reward 'hpsv2' of my_rewards:red is not used, the name is taken" in caplog.text


@pytest.mark.usefixtures("package")
def test_an_argument_is_a_reward_a_function_or_a_description(images: torch.Tensor) -> None:
    reward = load("red")
    assert as_reward(reward) is reward
    assert as_reward("red:2").name == "2 red"
    assert torch.equal(as_reward(lambda images, prompts: images.mean((1, 2, 3)))(images, ""), images.mean((1, 2, 3)))
    with pytest.raises(RewardError, match=r"or a function .*, got int"):
        as_reward(5)  # type: ignore[arg-type]


def test_all_rewards_of_this_package_are_listed_and_there() -> None:
    public = ["image-reward", "hpsv2", "hpsv2.1", "pick-score", "clip-score", "aesthetic"]
    assert names()[: len(public)] == public
    assert {"shapes", "shapes-matching", "shapes-referee"} <= set(names())
    for module, class_name, _ in BUILT_IN.values():
        assert hasattr(getattr(importlib.import_module(f"maskunet.rewards.{module}"), class_name), "from_pretrained")
    assert all(getattr(mu.rewards, name) is not None for name in mu.rewards.__all__)
    assert set(dir(mu.rewards)) == set(mu.rewards.__all__)
    with pytest.raises(AttributeError):
        _ = mu.rewards.nothing
