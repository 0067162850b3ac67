"""Captions of images, and the curve of a search."""

from __future__ import annotations

import re

import pytest
import torch

from maskunet.metrics.geneval_rules import Detection
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_scenes
from maskunet.ui.reward_curve import reward_curve
from maskunet.ui.verdicts import sentence, verdicts


def test_drawn_scenes_are_right_and_others_are_not() -> None:
    scenes = held_out_scenes(12)
    images = draw(scenes)
    for scene, image in zip(scenes, images, strict=True):
        (verdict,) = verdicts(image[None], scene.caption)
        assert verdict.is_correct, verdict.text
        assert verdict.text.startswith("right: ")
    (verdict,) = verdicts(images[:1], "a dog")
    assert verdict.is_correct is None
    assert "cannot tell" in verdict.text


@pytest.mark.parametrize(
    ("prompt", "objects", "said"),
    [
        ("a red circle", [], "wrong: expected a red circle, found no object that it is sure of"),
        ("a red circle", [("circle", "blue", 0)], "wrong: expected a red circle, found a blue circle"),
        ("three stars", [("star", "red", 0)] * 2, "wrong: expected three stars, found two red stars"),
        ("two stars", [("star", "red", 0)] * 3, "wrong: expected two stars, found three red stars"),
        (
            "a ring above a star",
            [("ring", "red", 40), ("star", "orange", 0)],
            "wrong: expected a ring above a star, found a red ring and an orange star, where the ring is below",
        ),
        (
            "a red star and a blue ring",
            [("star", "blue", 0), ("star", "red", 0), ("ring", "blue", 0)],
            "wrong: expected a red star and a blue ring, found a blue star, a red star and a blue ring, of which the surest "
            "star is blue",
        ),
        ("a red circle", [("circle", "red", 0)], "right: a red circle"),
    ],
)
def test_verdicts_in_words(
    monkeypatch: pytest.MonkeyPatch, prompt: str, objects: list[tuple[str, str, int]], said: str
) -> None:
    found = [Detection(name, colour, 1 - i / 100, (0, y, 9, y + 9)) for i, (name, colour, y) in enumerate(objects)]
    monkeypatch.setattr("maskunet.ui.verdicts.judge", lambda images: [found])
    (verdict,) = verdicts(torch.zeros(1, 3, 8, 8), prompt)
    assert verdict.text == said


def test_the_curve_is_described_and_stays_in_its_frame() -> None:
    assert reward_curve([], None, "shapes") == ""
    for values in ([], [0.5], [0.5, 0.5, 0.5], [-3.0, 2.0, 700.0]):
        drawn = reward_curve(values, 0.4, "<b>")
        assert f"{len(values)} trials" in drawn
        assert "<b>" not in drawn
        heights = [float(y) for y in re.findall(r"[ML]\d+\.\d+ (-?\d+\.\d+)", drawn)]
        assert len(heights) == len(values)
        assert all(0 <= y <= 100 for y in heights)


def test_sentences() -> None:
    assert sentence(ValueError("expected\n  a thing")) == "Expected a thing."
    assert sentence(ValueError("No!")) == "No!"
