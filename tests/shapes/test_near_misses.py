"""Near misses differ in one thing that the caption names, stay inside their splits, and the judge sees the difference."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from maskunet.errors import DataError
from maskunet.metrics.geneval_rules import check
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import judge
from maskunet.shapes.layout import Shape
from maskunet.shapes.near_misses import near_misses, shows
from maskunet.shapes.scenes import Scene, held_out_scenes, training_scene
from maskunet.shapes.vocabulary import TASKS, colour_split, count_split, pair_split


def _scene(caption: str, include: tuple[dict[str, object], ...], *objects: Shape) -> Scene:
    return Scene(objects, caption, "position", include)


def test_near_misses_contradict_the_caption() -> None:
    kinds: Counter[str] = Counter()
    for i in range(600):
        scene = training_scene(i, 9)
        assert shows(scene, scene.include)
        for miss in near_misses(scene, random.Random(i), 2):
            kinds[miss.task] += 1
            assert shows(miss, miss.include)
            assert not shows(miss, scene.include)
            assert not shows(scene, miss.include)
            assert miss.seed == scene.seed
    assert set(kinds) == set(TASKS)


def test_near_misses_of_training_scenes_have_training_combinations_only() -> None:
    for i in range(600):
        for miss in near_misses(training_scene(i, 9), random.Random(i), 3):
            assert {colour_split(o.colour, o.shape) for o in miss.objects} == {"train"}
            shapes = Counter(o.shape for o in miss.objects)
            if len(shapes) == 2:
                assert pair_split(*shapes) == "train"
            elif max(shapes.values()) > 1:
                ((shape, count),) = shapes.items()
                assert count_split(count, shape) == "train"


def test_near_misses_repeat_and_differ_from_each_other() -> None:
    scene = training_scene(3, 9)
    first, again = (near_misses(scene, random.Random(5), 3) for _ in range(2))
    assert first == again
    assert len({str(miss.include) for miss in first}) == 3


def test_the_judge_sees_the_difference_to_the_scene() -> None:
    scenes = held_out_scenes(60, "val")
    misses = [near_misses(s, random.Random(i), 1, ("train", "val", "test"))[0] for i, s in enumerate(scenes)]
    detections = judge(draw(misses))
    assert sum(check(d, _metadata(m)) is None for d, m in zip(detections, misses, strict=True)) >= 57
    # GenEval's rules accept additional objects, so not every near miss fails the scene's own caption.
    assert sum(check(d, _metadata(s)) is not None for d, s in zip(detections, scenes, strict=True)) >= 45


def _metadata(scene: Scene) -> dict[str, object]:
    return {"tag": scene.task, "include": [dict(n) for n in scene.include], "prompt": scene.caption}


def test_doubtful_positions_do_not_count_as_wrong() -> None:
    ring, star = Shape("ring", "red", 20, 20, 9), Shape("star", "blue", 44, 40, 9)
    left = ({"class": "star", "count": 1}, {"class": "ring", "count": 1, "position": ["left of", 0]})
    above = ({"class": "star", "count": 1}, {"class": "ring", "count": 1, "position": ["above", 0]})
    below = ({"class": "star", "count": 1}, {"class": "ring", "count": 1, "position": ["below", 0]})
    scene = _scene("a ring left of a star", left, ring, star)
    assert shows(scene, left)
    assert shows(scene, above)
    assert not shows(scene, below)
    assert not shows(scene, left[:1])
    assert not shows(
        replace(scene, objects=(ring, replace(star, colour="red"))), ({**left[0], "color": "blue"}, left[1])
    )


def test_too_few_near_misses_are_reported() -> None:
    with pytest.raises(DataError, match=r"expected 1 near misses of '.*' in the splits \(\), there are 0"):
        near_misses(training_scene(0), random.Random(0), 1, ())
