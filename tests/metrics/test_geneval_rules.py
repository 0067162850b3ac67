"""GenEval's rules, case by case."""

from __future__ import annotations

from collections.abc import Sequence

from maskunet.metrics.geneval_rules import Detection, check, overlap, relations, select


def box(x: float, y: float, size: float = 10) -> tuple[float, float, float, float]:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def seen(name: str, colour: str = "red", x: float = 10, y: float = 10, confidence: float = 1.0) -> Detection:
    return Detection(name, colour, confidence, box(x, y))


def test_one_object() -> None:
    need = {"tag": "single_object", "include": [{"class": "star", "count": 1}]}
    assert check([seen("star")], need) is None
    assert check([seen("star"), seen("ring")], need) is None
    assert check([seen("ring")], need) == "expected star>=1, found 0"
    assert check([seen("star", confidence=0.29)], need) is not None


def test_counting_is_strict_in_confidence_and_from_above() -> None:
    need = {
        "tag": "counting",
        "include": [{"class": "star", "count": 2}],
        "exclude": [{"class": "star", "count": 3}],
    }
    assert check([seen("star")] * 2, need) is None
    assert check([seen("star")] * 3, need) == "expected star<3, found 3"
    assert check([seen("star"), seen("star", confidence=0.5)], need) == "expected star>=2, found 1"
    assert check([*[seen("star")] * 2, seen("star", confidence=0.5)], need) is None


def test_colours_are_those_of_the_most_confident() -> None:
    need = {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "blue"}]}
    assert check([seen("star", "blue")], need) is None
    assert check([seen("star", "red")], need) == "expected blue star>=1, found 0 blue; and 1 red"
    assert check([seen("star", "red", confidence=0.5), seen("star", "blue")], need) is None


def test_attributes_bind() -> None:
    include = [{"class": "star", "count": 1, "color": "blue"}, {"class": "ring", "count": 1, "color": "red"}]
    need = {"tag": "color_attr", "include": include}
    assert check([seen("star", "blue"), seen("ring", "red")], need) is None
    assert check([seen("star", "red"), seen("ring", "blue")], need) is not None


def test_position() -> None:
    include = [{"class": "ring", "count": 1}, {"class": "star", "count": 1, "position": ["left of", 0]}]
    need = {"tag": "position", "include": include}
    assert check([seen("star", x=10), seen("ring", x=40)], need) is None
    assert (
        check([seen("star", x=40), seen("ring", x=10)], need) == "expected star left of target, found right of target"
    )
    assert check([seen("star", x=10)], need) == "expected ring>=1, found 0\nno target for star to be left of"


def test_relations_have_a_tolerance() -> None:
    here = seen("star", x=20, y=20)
    assert relations(here, seen("ring", x=20, y=20)) == set()
    assert relations(here, seen("ring", x=21.5, y=20)) == set()
    assert relations(here, seen("ring", x=40, y=20)) == {"left of"}
    assert relations(here, seen("ring", x=20, y=45)) == {"above"}
    assert relations(here, seen("ring", x=40, y=40)) == {"left of", "above"}


def test_thresholds_are_exclusive_and_counts_are_capped() -> None:
    assert select([seen("star", confidence=0.3)], counting=False) == {}
    assert select([seen("star", confidence=0.9)], counting=True) == {}
    found = [seen("star", x=i, confidence=0.5 + i / 100) for i in range(20)]
    kept = select(found, counting=False)["star"]
    assert kept == found[:3:-1]
    need = {"tag": "", "include": [], "exclude": [{"class": "star", "count": 17}]}
    assert check(found, need) is None


def test_overlapping_objects_count_unless_told_otherwise() -> None:
    """GenEval's own limit of overlap is 1, which leaves out none."""
    found = [seen("star", confidence=0.9), seen("star", x=11, confidence=0.8), seen("ring", x=11, confidence=0.7)]
    assert len(select(found, counting=False)["star"]) == 2
    kept = select(found, counting=False, max_overlap=0.5)
    assert kept == {"star": found[:1], "ring": found[2:]}
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == 50 / 150


def test_every_reason_is_given_in_genevals_words() -> None:
    include = [
        {"class": "ring", "count": 1, "color": "blue"},
        {"class": "star", "count": 1, "position": ["above", 0]},
        {"class": "star", "count": 2, "color": "red"},
    ]
    need = {"tag": "position", "include": include, "exclude": [{"class": "ring", "count": 1}]}
    found = [seen("ring", "red"), seen("star", "red"), seen("star", "cyan"), seen("star", "green", confidence=0.5)]
    assert check(found, need) == (
        "expected blue ring>=1, found 0 blue; and 1 red\n"
        "no target for star to be above\n"
        "expected red star>=2, found 1 red; and 1 red, 1 cyan\n"
        "expected ring<1, found 1"
    )


def test_colours_may_be_named_by_another() -> None:
    need = {"tag": "colors", "include": [{"class": "dog", "count": 2, "color": "red"}]}
    dogs = [Detection("dog", None, 0.9, box(10, 10)), Detection("dog", None, 0.8, box(30, 30))]
    asked = []

    def name(objects: Sequence[Detection]) -> list[str]:
        asked.append(list(objects))
        return ["red"] * len(objects)

    assert check([*dogs, Detection("dog", None, 0.7, box(50, 50))], need, name) is None
    assert asked == [dogs]
    assert check(dogs, need) == "expected red dog>=2, found 0 red; and 2 None"
