"""Rewards by name: built-in, declared by a package, weighted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import maskunet as mu
from maskunet.errors import CheckpointError, RewardError
from maskunet.rewards import WeightedSum, load, names, parse_reward
from maskunet.rewards.registry import BUILT_IN
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_scenes, training_scene
from maskunet.zoo.recipe.clip import wrong_caption

MODULE = """
from maskunet.rewards import FunctionReward, Reward

def red(pictures, prompts):
    return pictures[:, 0].mean((1, 2))

class Green(Reward):
    def __init__(self, scale=1.0):
        self.scale = scale
    def score(self, pictures, prompts):
        return self.scale * pictures[:, 1].mean((1, 2))

class Saved(Reward):
    name = "saved"
    @classmethod
    def from_pretrained(cls, source="default", *, twist=0):
        made = cls()
        made.source, made.twist = source, twist
        return made
    def score(self, pictures, prompts):
        return pictures.mean((1, 2, 3))

blue = FunctionReward(lambda pictures, prompts: pictures[:, 2].mean((1, 2)), "my blue")
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
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("package")
def test_a_package_declares_functions_classes_and_instances(pictures: torch.Tensor) -> None:
    assert {"red", "green", "saved", "blue"} < set(names())
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        assert torch.allclose(
            load(name, device="cpu", dtype=torch.float32)(pictures, ""), pictures[:, channel].mean((1, 2))
        )
    assert [load(name).name for name in ("red", "green", "blue", "saved")] == ["red", "green", "my blue", "saved"]
    assert load("green", scale=2.0)(pictures, "").tolist() == (2 * pictures[:, 1].mean((1, 2))).tolist()
    saved = load("saved", "there", twist=1)
    assert (saved.source, saved.twist) == ("there", 1)  # type: ignore[attr-defined]
    assert load("saved").source == "default"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("package")
def test_descriptions_become_sums(pictures: torch.Tensor) -> None:
    assert parse_reward("red").name == "red"
    for text in ("red:2, green", ["red:2", "green"], "red:2,green:1"):
        total = parse_reward(text, device="cpu")
        assert isinstance(total, WeightedSum)
        assert total.name == "2 red + 1 green"
        expected = 2 * pictures[:, 0].mean((1, 2)) + pictures[:, 1].mean((1, 2))
        assert torch.allclose(total(pictures, ""), expected)
    assert parse_reward("red:-1e-1").name == "-0.1 red"
    sourced = parse_reward("saved=a/b:c:0.5")
    assert isinstance(sourced, WeightedSum)
    assert (sourced.terms[0][0], sourced.terms[0][1].source) == (0.5, "a/b:c")  # type: ignore[attr-defined]
    assert parse_reward("saved=a:b").source == "a:b"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("package")
def test_what_cannot_be_used_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for wrong, reason in (
        ("hps", r"expected a reward among image-reward, hpsv2, .*, red, saved, got 'hps'; .*'maskunet\.rewards'"),
        ("red:five", "weight after the colon"),
        ("red:nan", "weight after the colon"),
        ("", "expected rewards like"),
        (" , ", "expected rewards like"),
        ("number", r"my_rewards:number to be a function .* for reward 'number': it is a int"),
        ("broken", "import reward 'broken'"),
        ("red=there", "takes no source"),
    ):
        with pytest.raises(RewardError, match=reason):
            parse_reward(wrong)
    with pytest.raises(RewardError, match="takes no scale"):
        load("red", scale=2.0)
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        assert names().count("hpsv2") == 1
    assert "reward 'hpsv2' of my_rewards:red is not used, the name is taken" in caplog.text


def test_every_built_in_class_is_there() -> None:
    import importlib

    for module, kind, _ in BUILT_IN.values():
        assert hasattr(getattr(importlib.import_module(f"maskunet.rewards.{module}"), kind), "from_pretrained")
    assert all(getattr(mu.rewards, name) is not None for name in mu.rewards.__all__)
    assert set(dir(mu.rewards)) == set(mu.rewards.__all__)
    with pytest.raises(AttributeError):
        _ = mu.rewards.nothing


@pytest.mark.parametrize("name", ["shapes", "shapes-matching"])
def test_the_bundled_rewards_prefer_what_the_picture_shows(name: str) -> None:
    import random

    reward = mu.rewards.load(name)
    scenes = [training_scene(i, 99) for i in range(40)]
    pictures = draw(scenes, "plain").clamp(0, 1).requires_grad_()
    right = reward(pictures, [s.caption for s in scenes])
    wrong = reward(pictures, [wrong_caption(s.caption, random.Random(i)) for i, s in enumerate(scenes)])
    assert float((right > wrong).float().mean()) >= 0.8
    right.sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(("task", "least"), [("color_attr", 0.95), ("position", 0.95)])
def test_the_matcher_tells_which_thing_has_which_colour_and_where_it_lies(task: str, least: float) -> None:
    """What a cosine of pooled features does not; in pairs that were never seen together (docs/reproduction.md)."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    reward = mu.rewards.load("shapes-matching")
    scenes = [s for s in held_out_scenes(360, "val") if s.task == task]
    exchanged = []
    if task == "color_attr":
        scenes = [s for s in scenes if s.include[0]["color"] != s.include[1]["color"]]
    for scene in scenes:
        one, other = (need.get("color", "") for need in scene.include)
        if task == "position":
            one = scene.include[1]["position"][0]
            other = opposite[one]
        exchanged.append(scene.caption.replace(one, "?").replace(other, one).replace("?", other))
    pictures = draw(scenes)
    with torch.no_grad():
        better = reward(pictures, [s.caption for s in scenes]) > reward(pictures, exchanged)
    assert len(scenes) > 50
    assert float(better.float().mean()) >= least


def test_a_matcher_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a matcher"):
        mu.rewards.load("shapes-matching", tmp_path)
    (tmp_path / "config.json").write_text('{"vision": {"hidden_size": 7}}')
    with pytest.raises(CheckpointError, match="expected a matcher"):
        mu.rewards.load("shapes-matching", tmp_path)
