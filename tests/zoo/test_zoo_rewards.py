"""The bundled rewards prefer what an image shows, and load like any other declared reward."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

import maskunet as mu
from maskunet.errors import CheckpointError, RewardError
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_scenes, training_scene
from maskunet.zoo.recipe.clip import wrong_caption
from maskunet.zoo.rewards import MatchingReward, RefereeReward, ShapesReward, bundled_weights

CLASSES = {"shapes": ShapesReward, "shapes-matching": MatchingReward, "shapes-referee": RefereeReward}


@pytest.mark.parametrize("name", list(CLASSES))
def test_entry_points_load_the_bundled_rewards(name: str, tmp_path: Path) -> None:
    reward = mu.rewards.load(name, dtype=torch.float32)
    assert type(reward) is CLASSES[name]
    assert reward.name == name
    images, prompts = (
        draw([training_scene(i, 99) for i in range(4)]),
        ["a red circle", "two stars", "a ring", "a cross"],
    )
    values = reward(images, prompts)
    assert (values <= (0 if name == "shapes-matching" else 1)).all()
    copy = shutil.copytree(bundled_weights(name), tmp_path / "copy")
    assert torch.equal(mu.rewards.load(name, copy)(images, prompts), values)


@pytest.mark.parametrize("name", list(CLASSES))
def test_bundled_rewards_prefer_the_right_caption(name: str) -> None:
    reward = mu.rewards.load(name)
    scenes = [training_scene(i, 99) for i in range(40)]
    images = draw(scenes, "plain").clamp(0, 1).requires_grad_()
    right = reward(images, [s.caption for s in scenes])
    wrong = reward(images, [wrong_caption(s.caption, random.Random(i)) for i, s in enumerate(scenes)])
    assert float((right > wrong).float().mean()) >= 0.8
    right.sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("task", ["color_attr", "position"])
def test_the_matcher_reads_colours_and_positions_of_each_object(task: str) -> None:
    """A cosine of pooled features does not; on pairs that never occur in training (docs/reproduction.md)."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    reward = mu.rewards.load("shapes-matching")
    scenes = [s for s in held_out_scenes(360, "val") if s.task == task]
    if task == "color_attr":
        scenes = [s for s in scenes if s.include[0]["color"] != s.include[1]["color"]]
    swapped = []
    for scene in scenes:
        first, second = (requirement.get("color", "") for requirement in scene.include)
        if task == "position":
            first = scene.include[1]["position"][0]
            second = opposite[first]
        swapped.append(scene.caption.replace(first, "?").replace(second, first).replace("?", second))
    images = draw(scenes)
    with torch.no_grad():
        is_better = reward(images, [s.caption for s in scenes]) > reward(images, swapped)
    assert len(scenes) > 50
    assert float(is_better.float().mean()) >= 0.95


def test_other_folders_are_no_matcher(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a matcher"):
        mu.rewards.load("shapes-matching", tmp_path)
    (tmp_path / "config.json").write_text('{"vision": {"hidden_size": 7}}')
    with pytest.raises(CheckpointError, match="expected a matcher"):
        mu.rewards.load("shapes-matching", tmp_path)


def test_weights_of_other_rewards_are_not_bundled() -> None:
    with pytest.raises(RewardError, match=r"bundled reward \(shapes, shapes-matching, shapes-referee\), got 'hpsv2'"):
        bundled_weights("hpsv2")
