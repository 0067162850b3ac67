"""Captions read back: what was asked for comes out again, and other texts are left alone."""

from __future__ import annotations

import pytest

from maskunet.shapes.captions import read_caption
from maskunet.shapes.scenes import held_out_prompts, training_scene


def test_prompts_are_read_back_whole() -> None:
    for prompt in held_out_prompts(300):
        assert read_caption(prompt.prompt) == prompt


def test_training_captions_in_all_wordings_ask_for_the_same() -> None:
    for index in range(400):
        scene = training_scene(index)
        read = read_caption(scene.caption)
        assert read is not None, scene.caption
        assert read.include == scene.include


@pytest.mark.parametrize("text", ["", "a dog", "red circle", "a red circle and a blue circle", "two stars and a ring"])
def test_other_texts_are_not_read(text: str) -> None:
    assert read_caption(text) is None


def test_spelling_does_not_matter() -> None:
    read = read_caption("  A Red  circle. ")
    assert read is not None
    assert read.include == ({"class": "circle", "count": 1, "color": "red"},)
