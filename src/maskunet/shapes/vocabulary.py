"""The words of the shapes world: eight shapes, eight colours, six tasks, and which combinations are held out.

A combination of the validation or the test split is never drawn in a training image:

- a (colour, shape) pair: 8 of 64 for test, 8 for validation;
- an unordered pair of shapes in one image: 8 of 28 for test, 4 for validation;
- a (count, shape) pair: 4 of 24 for test, 4 for validation.
"""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "val", "test"]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
#: Hue of each colour in degrees; neighbours are at least 27 degrees apart.
HUES = {
    "red": 0.0,
    "orange": 28.0,
    "yellow": 56.0,
    "green": 125.0,
    "cyan": 182.0,
    "blue": 224.0,
    "purple": 274.0,
    "pink": 322.0,
}
#: GenEval's six tasks, in its own order and spelling.
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}


def distance_along(relation: str, dx: float, dy: float) -> float:
    """Return how far an offset extends in a relation's direction, in pixels; negative on the opposite side.

    Args:
        relation: one of `RELATIONS`.
        dx: offset of the first object from the second, to the right, in pixels.
        dy: the same, downwards.
    """
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]


def plural(shape: str) -> str:
    """Return the plural of a shape's name.

    Args:
        shape: one of `SHAPES`, or a phrase that ends in one.
    """
    return shape + ("es" if shape.endswith("s") else "s")


def colour_split(colour: str, shape: str) -> Split:
    """Return the split of a (colour, shape) pair.

    Args:
        colour: one of `COLOURS`.
        shape: one of `SHAPES`.
    """
    offset = (SHAPES.index(shape) - 3 * COLOURS.index(colour)) % 8
    return {1: "test", 5: "val"}.get(offset, "train")  # type: ignore[return-value]


def pair_split(first: str, second: str) -> Split:
    """Return the split of two different shapes in one image; their order does not matter.

    Args:
        first: one of `SHAPES`.
        second: another one.
    """
    offset = (SHAPES.index(first) - SHAPES.index(second)) % 8
    if offset in (1, 7):
        return "test"
    return "val" if offset == 4 else "train"


def count_split(count: int, shape: str) -> Split:
    """Return the split of several objects of one shape.

    Args:
        count: number of objects, 2 to 4.
        shape: one of `SHAPES`.
    """
    index = SHAPES.index(shape)
    if count != 2 + index % 3:
        return "train"
    return "test" if index % 2 == 0 else "val"
