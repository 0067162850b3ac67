"""Scenes: captions agree with the objects, and training has no held-out combination."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from maskunet.shapes.scenes import Scene, held_out_prompts, held_out_scenes, training_scene
from maskunet.shapes.vocabulary import COLOURS, SHAPES, TASKS, colour_split, count_split, pair_split, plural

SCENES = [training_scene(i) for i in range(3000)]


def test_a_scene_depends_on_index_and_seed_only() -> None:
    assert training_scene(7, 3) == training_scene(7, 3)
    assert training_scene(7, 3) != training_scene(8, 3)
    assert training_scene(7, 3) != training_scene(7, 4)


def test_training_draws_no_held_out_combination() -> None:
    for scene in SCENES:
        assert all(colour_split(o.colour, o.shape) == "train" for o in scene.objects)
        kinds = sorted({o.shape for o in scene.objects})
        assert all(pair_split(a, b) == "train" for a, b in itertools.combinations(kinds, 2))
        if len(kinds) == 1 and len(scene.objects) > 1:
            assert count_split(len(scene.objects), kinds[0]) == "train"


def test_training_shows_every_word_and_task() -> None:
    assert {s.task for s in SCENES} == set(TASKS)
    words = set(" ".join(s.caption for s in SCENES).split())
    assert {*SHAPES, *COLOURS, *(plural(s) for s in SHAPES), "left", "right", "above", "below", "two"} <= words


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_prompts_are_of_their_split(split: str) -> None:
    for prompt in held_out_prompts(600, split):  # type: ignore[arg-type]
        first = prompt.include[0]
        if prompt.task == "colors":
            assert colour_split(first["color"], first["class"]) == split
        elif prompt.task == "counting":
            assert count_split(first["count"], first["class"]) == split
            assert prompt.exclude[0] == {"class": first["class"], "count": first["count"] + 1}
        elif prompt.task != "single_object":
            assert pair_split(first["class"], prompt.include[1]["class"]) == split


def test_splits_have_their_sizes() -> None:
    pairs = Counter(colour_split(c, s) for c in COLOURS for s in SHAPES)
    assert pairs == {"train": 48, "val": 8, "test": 8}
    both = Counter(pair_split(a, b) for a, b in itertools.combinations(SHAPES, 2))
    assert both == {"train": 16, "val": 4, "test": 8}
    counts = Counter(count_split(n, s) for n in (2, 3, 4) for s in SHAPES)
    assert counts == {"train": 16, "val": 4, "test": 4}


def test_any_prefix_of_prompts_is_balanced_and_stable() -> None:
    assert held_out_prompts(60) == held_out_prompts(600)[:60]
    assert set(Counter(p.task for p in held_out_prompts(60)).values()) == {10}


def _meets(scene: Scene) -> bool:
    for requirement in scene.include:
        objects = [o for o in scene.objects if o.shape == requirement["class"]]
        if len(objects) != requirement["count"] or any(
            o.colour != requirement.get("color", o.colour) for o in objects
        ):
            return False
        if "position" in requirement:
            relation, target = requirement["position"]
            other = next(o for o in scene.objects if o.shape == scene.include[target]["class"])
            dx, dy = objects[0].x - other.x, objects[0].y - other.y
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
            if along <= abs(dy if relation.endswith("of") else dx):
                return False
    return True


def test_scenes_agree_with_their_captions() -> None:
    for scene in [*SCENES, *held_out_scenes(600)]:
        assert _meets(scene), scene.caption
        for a, b in itertools.combinations(scene.objects, 2):
            assert math.dist((a.x, a.y), (b.x, b.y)) > a.radius + b.radius
        for requirement in scene.include:
            word = requirement["class"] if requirement["count"] == 1 else plural(requirement["class"])
            assert word in scene.caption.split()
            assert requirement.get("color", "") in scene.caption


def test_metadata_has_genevals_keys() -> None:
    entry = next(p for p in held_out_prompts(12) if p.task == "position").metadata()
    assert set(entry) == {"tag", "include", "prompt"}
    relation, target = entry["include"][1]["position"]
    assert relation in ("left of", "right of", "above", "below")
    assert target == 0
