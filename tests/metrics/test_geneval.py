"""GenEval's rules, case by case."""

from __future__ import annotations

from maskunet.metrics.geneval import Detection, check, relations


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
