"""Captions of two shapes' relations and colours, and which of them are right."""

from __future__ import annotations

import random

import pytest
import torch

from maskunet.shapes.near_misses import shows
from maskunet.shapes.scenes import training_scene
from maskunet.shapes.vocabulary import COLOURS, RELATIONS, SHAPES, colour_split
from maskunet.zoo.recipe.relations import (
    CAPTIONS,
    PAIRS,
    ColourCaptions,
    RelationCaptions,
    _colour_captions,
    _relation_captions,
    relation_holds,
    relation_tokens,
)
from maskunet.zoo.recipe.tokenizer import build_tokenizer


@pytest.mark.parametrize(
    ("along", "distance", "expected"),
    [(10, 10, True), (8, 10, True), (6, 10, None), (3, 10, False), (0, 10, False), (-10, 10, False), (0, 0, False)],
)
def test_a_relation_holds_fails_or_is_in_doubt(along: float, distance: float, expected: bool | None) -> None:
    assert relation_holds(along, distance) is expected


def test_verdicts_agree_with_the_scenes_own_words() -> None:
    count = 0
    for index in range(400):
        scene = training_scene(index, seed=5)
        if scene.task != "position":
            continue
        count += 1
        captions, verdicts = _relation_captions(scene, random.Random(index))
        assert len(captions) == len(verdicts) == CAPTIONS
        assert all(o.shape in caption for o in scene.objects for caption in captions)
        (first, second), relation = scene.include, scene.include[1]["position"][0]
        for order, pair in enumerate((scene.objects, scene.objects[::-1])):
            for k, word in enumerate(RELATIONS):
                verdict = verdicts[4 * order + k]
                assert word in captions[4 * order + k]
                requirements = [
                    {"class": pair[1].shape, "count": 1},
                    {"class": pair[0].shape, "count": 1, "position": [word, 0]},
                ]
                if verdict == 1:  # right captions are never near misses
                    assert shows(scene, requirements)
                if (pair[0].shape, pair[1].shape, word) == (second["class"], first["class"], relation):
                    assert verdict == 1
    assert count > 50


def test_a_right_and_a_wrong_caption_are_drawn_for_each_image_that_has_both() -> None:
    scenes = [training_scene(i) for i in range(60)]
    relations = RelationCaptions(scenes, build_tokenizer(), seed=0)
    has_two = [len(s.objects) == 2 and s.objects[0].shape != s.objects[1].shape for s in scenes]
    rows, ids, right = relations.sample(torch.arange(60), torch.Generator().manual_seed(0))
    assert len(rows) == len(ids) == len(right)
    assert right.tolist() == [True] * (len(rows) // 2) + [False] * (len(rows) // 2)
    assert rows[: len(rows) // 2].tolist() == rows[len(rows) // 2 :].tolist()
    assert all(has_two[i] for i in rows.tolist())
    assert len(rows) > sum(has_two)  # most images of two shapes have both
    again = relations.sample(torch.arange(60), torch.Generator().manual_seed(0))
    assert torch.equal(ids, again[1])
    captions = {tuple(i) for r in range(60) if has_two[r] for i in relations._ids[relations._row[r]].tolist()}
    assert {tuple(i) for i in ids.tolist()} <= captions
    assert not bool((ids[right] == ids[~right]).all(1).any())


@pytest.mark.parametrize("kind", [RelationCaptions, ColourCaptions])
def test_scenes_without_two_shapes(kind: type[RelationCaptions | ColourCaptions]) -> None:
    scenes = [s for s in (training_scene(i) for i in range(60)) if len(s.objects) == 1]
    rows, ids, right = kind(scenes, build_tokenizer(), seed=0).sample(
        torch.arange(len(scenes)), torch.Generator().manual_seed(0)
    )
    assert len(rows) == len(right) == len(ids) == 0


def colours_in(caption: str) -> dict[str, str]:
    """Return the colour of each shape in a caption."""
    words = caption.split()
    return {word: words[i - 1] for i, word in enumerate(words) if word in SHAPES and words[i - 1] in COLOURS}


def test_captions_of_colours_are_right_or_wrong_in_colours_only() -> None:
    swapped, placed = 0, 0
    scenes = [s for s in (training_scene(i, seed=5) for i in range(300)) if len({o.shape for o in s.objects}) == 2]
    for index, scene in enumerate(scenes):
        captions = _colour_captions(scene, random.Random(index))
        assert len(captions) == 2 * PAIRS
        true = {o.shape: o.colour for o in scene.objects}
        for right, wrong in zip(captions[::2], captions[1::2], strict=True):
            assert colours_in(right) == true
            assert colours_in(wrong) != true
            assert set(colours_in(wrong)) == set(true)
            assert all(colour_split(colour, shape) == "train" for shape, colour in colours_in(wrong).items())
            swapped += list(colours_in(wrong).values()) == list(colours_in(right).values())[::-1]
            words = [word for word in RELATIONS if word in right]
            assert [word for word in RELATIONS if word in wrong] == words
            if words:  # a relation that holds, of the same objects in the same order
                placed += 1
                (first, second), relation = shapes_in(right), words[0]
                assert shapes_in(wrong) == [first, second]
                requirements = [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}]
                assert shows(scene, requirements)
    assert swapped > 0.2 * PAIRS * len(scenes)
    assert placed > 0.3 * PAIRS * len(scenes)


def shapes_in(caption: str) -> list[str]:
    """Return the shapes in a caption, in its order."""
    return [word for word in caption.split() if word in SHAPES]


def test_an_image_of_two_shapes_meets_true_and_wrong_colours() -> None:
    scenes, tokenizer = [training_scene(i) for i in range(60)], build_tokenizer()
    bindings = ColourCaptions(scenes, tokenizer, seed=0)
    rows, ids, right = bindings.sample(torch.arange(60), torch.Generator().manual_seed(0))
    two = [i for i, s in enumerate(scenes) if len(s.objects) == 2 and s.objects[0].shape != s.objects[1].shape]
    assert rows.tolist() == two + two
    assert right.tolist() == [True] * len(two) + [False] * len(two)
    for row, caption, good in zip(rows.tolist(), tokenizer.batch_decode(ids, True), right.tolist(), strict=True):
        assert (colours_in(caption) == {o.shape: o.colour for o in scenes[row].objects}) is good
    assert torch.equal(ids, bindings.sample(torch.arange(60), torch.Generator().manual_seed(0))[1])


def test_each_caption_has_one_word_of_relation() -> None:
    tokenizer = build_tokenizer()
    relations = RelationCaptions([training_scene(i) for i in range(60)], tokenizer, seed=0)
    is_relation = relation_tokens(tokenizer)
    assert is_relation.sum() == 4
    assert bool((is_relation[relations._ids.flatten(0, 1)].sum(1) == 1).all())
