"""Captions are parsed back into their requirements; other texts give None."""

from __future__ import annotations

import pytest

from maskunet.shapes.captions import read_caption
from maskunet.shapes.scenes import held_out_prompts, training_scene


def test_prompts_are_parsed_back_completely() -> None:
    for prompt in held_out_prompts(300):
        assert read_caption(prompt.prompt) == prompt


def test_training_captions_keep_their_requirements_in_all_templates() -> None:
    for index in range(400):
        scene = training_scene(index)
        prompt = read_caption(scene.caption)
        assert prompt is not None, scene.caption
        assert prompt.include == scene.include


@pytest.mark.parametrize("text", ["", "a dog", "red circle", "a red circle and a blue circle", "two stars and a ring"])
def test_other_texts_give_none(text: str) -> None:
    assert read_caption(text) is None


def test_case_spaces_and_full_stop_do_not_matter() -> None:
    prompt = read_caption("  A Red  circle. ")
    assert prompt is not None
    assert prompt.include == ({"class": "circle", "count": 1, "color": "red"},)
