"""The judge names the objects of at least 99 % of drawn images exactly, and has no confidence in other outlines."""

from __future__ import annotations

import pytest
import torch

from maskunet.metrics.geneval_rules import check
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import is_exact, judge
from maskunet.shapes.layout import Shape
from maskunet.shapes.scenes import Scene, held_out_prompts, held_out_scenes, training_scene
from maskunet.shapes.vocabulary import COLOURS, SHAPES


def scene(*objects: Shape) -> Scene:
    return Scene(objects, "", "", ())


def test_an_empty_scene_has_no_objects() -> None:
    assert judge(draw([scene()])) == [[]]


def test_drawn_images_are_judged_exactly() -> None:
    scenes = held_out_scenes(300) + [training_scene(i, seed=9) for i in range(300)]
    detections = judge(draw(scenes))
    right = [is_exact(d, [(o.shape, o.colour) for o in s.objects]) for d, s in zip(detections, scenes, strict=True)]
    assert sum(right) / len(right) >= 0.99
    prompts = held_out_prompts(300)
    matches = [check(d, p.metadata()) is None for d, p in zip(detections, prompts, strict=False)]
    assert sum(matches) / len(matches) >= 0.99


def test_every_shape_is_named_in_every_colour() -> None:
    objects = [Shape(s, c, 32, 32, 13) for s in SHAPES for c in COLOURS]
    for o, detections in zip(objects, judge(draw([scene(o) for o in objects])), strict=True):
        assert is_exact(detections, [(o.shape, o.colour)])
        assert detections[0].confidence > 0.9
        left, top, right, bottom = detections[0].box
        assert abs((left + right) / 2 - 32) < 2
        assert 15 < right - left < 30
        assert 15 < bottom - top < 30


def test_touching_objects_of_two_colours_are_two() -> None:
    image = draw([scene(Shape("square", "blue", 22, 32, 12), Shape("circle", "red", 41, 32, 11))])
    assert is_exact(judge(image)[0], [("square", "blue"), ("circle", "red")])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_of_shifting_colour_is_one(shape: str) -> None:
    """Generated objects can lie between two hues: the left part counts as red, the right part as pink."""
    red, pink = draw([scene(Shape(shape, c, 32, 32, 14)) for c in ("red", "pink")])
    share = torch.linspace(-1.5, 2.5, 64).clamp(0, 1)
    detections = [d for d in judge((red * (1 - share) + pink * share)[None])[0] if d.confidence >= 0.3]
    assert [d.name for d in detections] == [shape]
    assert detections[0].colour in ("red", "pink")


def test_images_fail_other_prompts() -> None:
    """An image fails another prompt of its task, unless it happens to match it."""
    prompts, scenes = held_out_prompts(240), held_out_scenes(240)
    detections = judge(draw(scenes))
    failed = sum(check(detections[i], prompts[i + 6].metadata()) is not None for i in range(234))
    assert failed / 234 > 0.9


def test_a_shapeless_region_gets_no_confidence() -> None:
    image = torch.full((1, 3, 64, 64), 0.85)
    image[0, 1:, 10:14, 5:60] = 0.1  # a long red bar
    detections = judge(image)[0]
    assert len(detections) == 1
    assert detections[0].colour == "red"
    assert detections[0].confidence < 0.3
