"""Objects of a scene and their random layout.

Distances are in pixels of the 64 by 64 image, angles in degrees; the y axis points down.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .vocabulary import COLOURS, Split, colour_split, distance_along

SIZE = 64
#: Range of the radius in pixels, by number of objects.
RADII = {1: (11.0, 19.0), 2: (10.0, 14.0), 3: (8.5, 11.5), 4: (8.0, 10.5)}


@dataclass(frozen=True)
class Shape:
    """One object.

    Args:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        x, y: centre in pixels; y points down.
        radius: radius in pixels.
        rotation: rotation in degrees.
        hue_shift: offset from the colour's own hue, in degrees.
        saturation, value: of its colour, in [0, 1].
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0
    hue_shift: float = 0.0
    saturation: float = 0.85
    value: float = 0.9


def pick_colour(rng: random.Random, shape: str, split: Split, other: str | None = None) -> str:
    """Return a random colour of a shape.

    Args:
        rng: draws the colour.
        shape: one of `SHAPES`.
        split: split of the (colour, shape) pair.
        other: a colour that it must not be.
    """
    names = [c for c in COLOURS if colour_split(c, shape) == split and c != other]
    # A split may have a single colour for this shape; if the other object has it, use a training colour.
    return rng.choice(names or [c for c in COLOURS if colour_split(c, shape) == "train" and c != other])


def _random_layout(rng: random.Random, count: int, relation: str | None) -> list[tuple[float, float, float]]:
    """Return centres and radii of `count` objects that touch neither each other nor the border.

    `relation` is that of the second object to the first.
    """
    low, high = RADII[count]
    while True:
        radii = [rng.uniform(low, high) for _ in range(count)]
        centres = [(rng.uniform(r + 2, SIZE - r - 2), rng.uniform(r + 2, SIZE - r - 2)) for r in radii]
        are_apart = all(
            math.dist(centres[i], centres[j]) > radii[i] + radii[j] + 3 for i in range(count) for j in range(i)
        )
        if not are_apart:
            continue
        if relation is not None:
            dx, dy = centres[1][0] - centres[0][0], centres[1][1] - centres[0][1]
            along = distance_along(relation, dx, dy)
            across = abs(dy) if relation.endswith("of") else abs(dx)
            if along <= 1.5 * across:
                continue
        return [(x, y, r) for (x, y), r in zip(centres, radii, strict=True)]


def arrange(requirements: Sequence[Mapping[str, Any]], rng: random.Random) -> tuple[Shape, ...]:
    """Return random objects that meet requirements.

    Args:
        requirements: the requirements.
        rng: draws the layout and everything else that the requirements leave open.
    """
    relation = next((n["position"][0] for n in requirements if "position" in n), None)
    instances = [n for n in requirements for _ in range(n["count"])]
    shared_colours: dict[str, str] = {}
    objects = []
    for requirement, (x, y, radius) in zip(instances, _random_layout(rng, len(instances), relation), strict=True):
        colour = requirement.get("color")
        if colour is None:
            # Counted objects usually have one colour.
            colour = shared_colours.get(requirement["class"]) or pick_colour(rng, requirement["class"], "train")
            if requirement["count"] > 1 and rng.random() < 0.75:
                shared_colours[requirement["class"]] = colour
        objects.append(
            Shape(
                requirement["class"],
                colour,
                x,
                y,
                radius,
                rotation=rng.uniform(-14, 14),
                hue_shift=rng.uniform(-4, 4),
                saturation=rng.uniform(0.75, 0.95),
                value=rng.uniform(0.78, 0.98),
            )
        )
    rng.shuffle(objects)
    return tuple(objects)
