"""What is said of two shapes' places, and which of it is right."""

from __future__ import annotations

import pytest
import torch

from maskunet.shapes.near_misses import shows
from maskunet.shapes.scenes import training_scene
from maskunet.shapes.vocabulary import COLOURS, RELATIONS, SHAPES, colour_split
from maskunet.zoo.recipe.relations import (
    CAPTIONS,
    PAIRS,
    Bindings,
    Relations,
    _coloured,
    _described,
    holds,
    relation_tokens,
)
from maskunet.zoo.recipe.tokenizer import build_tokenizer


@pytest.mark.parametrize(
    ("ahead", "distance", "expected"),
    [(10, 10, True), (8, 10, True), (6, 10, None), (3, 10, False), (0, 10, False), (-10, 10, False), (0, 0, False)],
)
def test_a_relation_holds_fails_or_is_in_doubt(ahead: float, distance: float, expected: bool | None) -> None:
    assert holds(ahead, distance) is expected


def test_verdicts_agree_with_the_scenes_own_words() -> None:
    import random

    seen = 0
    for index in range(400):
        scene = training_scene(index, seed=5)
        if scene.task != "position":
            continue
        seen += 1
        captions, verdicts = _described(scene, random.Random(index))
        assert len(captions) == len(verdicts) == CAPTIONS
        assert all(o.shape in caption for o in scene.objects for caption in captions)
        (first, second), relation = scene.include, scene.include[1]["position"][0]
        for order, pair in enumerate((scene.objects, scene.objects[::-1])):
            for k, word in enumerate(RELATIONS):
                verdict = verdicts[4 * order + k]
                assert word in captions[4 * order + k]
                needs = [
                    {"class": pair[1].shape, "count": 1},
                    {"class": pair[0].shape, "count": 1, "position": [word, 0]},
                ]
                if verdict == 1:  # what is right is never what near misses call wrong
                    assert shows(scene, needs)
                if (pair[0].shape, pair[1].shape, word) == (second["class"], first["class"], relation):
                    assert verdict == 1
    assert seen > 50


def test_a_right_and_a_wrong_caption_are_drawn_for_each_picture_that_has_both() -> None:
    scenes = [training_scene(i) for i in range(60)]
    relations = Relations(scenes, build_tokenizer(), seed=0)
    two = [len(s.objects) == 2 and s.objects[0].shape != s.objects[1].shape for s in scenes]
    rows, ids, right = relations.draw(torch.arange(60), torch.Generator().manual_seed(0))
    assert len(rows) == len(ids) == len(right)
    assert right.tolist() == [True] * (len(rows) // 2) + [False] * (len(rows) // 2)
    assert rows[: len(rows) // 2].tolist() == rows[len(rows) // 2 :].tolist()
    assert all(two[i] for i in rows.tolist())
    assert len(rows) > sum(two)  # most pictures of two shapes have both
    again = relations.draw(torch.arange(60), torch.Generator().manual_seed(0))
    assert torch.equal(ids, again[1])
    own = {tuple(i) for r in range(60) if two[r] for i in relations._ids[relations._row[r]].tolist()}
    assert {tuple(i) for i in ids.tolist()} <= own
    assert not bool((ids[right] == ids[~right]).all(1).any())


@pytest.mark.parametrize("kind", [Relations, Bindings])
def test_scenes_without_two_shapes(kind: type[Relations | Bindings]) -> None:
    scenes = [s for s in (training_scene(i) for i in range(60)) if len(s.objects) == 1]
    rows, ids, right = kind(scenes, build_tokenizer(), seed=0).draw(
        torch.arange(len(scenes)), torch.Generator().manual_seed(0)
    )
    assert len(rows) == len(right) == len(ids) == 0


def bindings_of(caption: str) -> dict[str, str]:
    """What colour a caption says of each shape."""
    words = caption.split()
    return {word: words[i - 1] for i, word in enumerate(words) if word in SHAPES and words[i - 1] in COLOURS}


def test_captions_of_colours_are_true_or_wrong_in_colours_alone() -> None:
    import random

    exchanged, placed = 0, 0
    scenes = [s for s in (training_scene(i, seed=5) for i in range(300)) if len({o.shape for o in s.objects}) == 2]
    for index, scene in enumerate(scenes):
        captions = _coloured(scene, random.Random(index))
        assert len(captions) == 2 * PAIRS
        true = {o.shape: o.colour for o in scene.objects}
        for right, wrong in zip(captions[::2], captions[1::2], strict=True):
            assert bindings_of(right) == true
            assert bindings_of(wrong) != true
            assert set(bindings_of(wrong)) == set(true)
            assert all(colour_split(colour, shape) == "train" for shape, colour in bindings_of(wrong).items())
            exchanged += list(bindings_of(wrong).values()) == list(bindings_of(right).values())[::-1]
            words = [word for word in RELATIONS if word in right]
            assert [word for word in RELATIONS if word in wrong] == words
            if words:  # a relation that holds, of the same two in the same order
                placed += 1
                (first, second), relation = named(right), words[0]
                assert named(wrong) == [first, second]
                needs = [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}]
                assert shows(scene, needs)
    assert exchanged > 0.2 * PAIRS * len(scenes)
    assert placed > 0.3 * PAIRS * len(scenes)


def named(caption: str) -> list[str]:
    """Shapes in the order that a caption names them."""
    return [word for word in caption.split() if word in SHAPES]


def test_a_picture_of_two_shapes_meets_true_and_wrong_colours() -> None:
    scenes, tokenizer = [training_scene(i) for i in range(60)], build_tokenizer()
    bindings = Bindings(scenes, tokenizer, seed=0)
    rows, ids, right = bindings.draw(torch.arange(60), torch.Generator().manual_seed(0))
    two = [i for i, s in enumerate(scenes) if len(s.objects) == 2 and s.objects[0].shape != s.objects[1].shape]
    assert rows.tolist() == two + two
    assert right.tolist() == [True] * len(two) + [False] * len(two)
    for row, caption, good in zip(rows.tolist(), tokenizer.batch_decode(ids, True), right.tolist(), strict=True):
        assert (bindings_of(caption) == {o.shape: o.colour for o in scenes[row].objects}) is good
    assert torch.equal(ids, bindings.draw(torch.arange(60), torch.Generator().manual_seed(0))[1])


def test_each_caption_has_one_word_that_tells_relations_apart() -> None:
    tokenizer = build_tokenizer()
    relations = Relations([training_scene(i) for i in range(60)], tokenizer, seed=0)
    known = relation_tokens(tokenizer)
    assert known.sum() == 4
    assert bool((known[relations._ids.flatten(0, 1)].sum(1) == 1).all())
