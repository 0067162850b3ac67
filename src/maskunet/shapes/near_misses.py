"""Near misses: scenes that differ from another one in one thing; and whether a scene meets a caption's requirements.

A reward that learns to distinguish a scene from its near misses must look at what generated images get wrong: a colour, a
shape, a number, a position, or which object has which colour. Near misses stay inside the allowed splits, since a
combination that occurred in wrong captions only would be learnt as wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import DataError
from .layout import Shape, arrange
from .scenes import Scene, requirement_on, write_caption
from .vocabulary import COLOURS, SHAPES, Split, colour_split, count_split, distance_along, pair_split

_Requirements = list[dict[str, Any]]
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_TRANSPOSED = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}


def shows(scene: Scene, requirements: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a scene shows exactly the objects of a caption, in its colours and positions.

    Args:
        scene: the content of the image.
        requirements: the caption's requirements. A position is met if the object lies on that side at all, so that doubtful
            cases never count as wrong.
    """
    if len(scene.objects) != sum(requirement["count"] for requirement in requirements):
        return False
    for requirement in requirements:
        objects = [o for o in scene.objects if o.shape == requirement["class"]]
        if len(objects) != requirement["count"] or any(
            o.colour != requirement.get("color", o.colour) for o in objects
        ):
            return False
        if "position" in requirement:
            relation, index = requirement["position"]
            reference = next(o for o in scene.objects if o.shape == requirements[index]["class"])
            dx, dy = objects[0].x - reference.x, objects[0].y - reference.y
            if distance_along(relation, dx, dy) <= 0:
                return False
    return True


def near_misses(scene: Scene, rng: random.Random, count: int, splits: Sequence[Split] = ("train",)) -> list[Scene]:
    """Return scenes that differ from a scene in one thing that its caption names.

    Args:
        scene: the scene; its near misses have its objects, layout and ground as far as the change allows.
        rng: draws the changes.
        count: number of near misses; they differ from each other if there are enough.
        splits: splits whose combinations a near miss may have.

    Raises:
        DataError: `splits` have too few near misses of the scene.
    """
    misses: list[Scene] = []
    for attempt in range(60 * count):
        changed = rng.choice(_CHANGES)(scene, rng)
        if changed is None or not _is_allowed(changed, splits):
            continue
        if shows(changed, scene.include) or shows(scene, changed.include):
            continue
        if any(changed.include == other.include for other in misses) and attempt < 30 * count:
            continue
        misses.append(changed)
        if len(misses) == count:
            return misses
    raise DataError(
        f"expected {count} near misses of {scene.caption!r} in the splits ({', '.join(splits)}), there are {len(misses)}"
    )


def _is_allowed(scene: Scene, splits: Sequence[Split]) -> bool:
    if any(colour_split(o.colour, o.shape) not in splits for o in scene.objects):
        return False
    requirements = scene.include
    if len(requirements) == 1 and requirements[0]["count"] > 1:
        return count_split(requirements[0]["count"], requirements[0]["class"]) in splits
    return len(requirements) == 1 or pair_split(requirements[0]["class"], requirements[1]["class"]) in splits


def _near_miss(scene: Scene, objects: Sequence[Shape], requirements: _Requirements, rng: random.Random) -> Scene:
    return Scene(
        tuple(objects), write_caption(requirements, rng), _task(requirements), tuple(requirements), seed=scene.seed
    )


def _task(requirements: _Requirements) -> str:
    if len(requirements) == 2:
        if "position" in requirements[1]:
            return "position"
        return "color_attr" if "color" in requirements[0] and "color" in requirements[1] else "two_object"
    if requirements[0]["count"] > 1:
        return "counting"
    return "colors" if "color" in requirements[0] else "single_object"


def _copy_requirements(scene: Scene) -> _Requirements:
    return [dict(requirement) for requirement in scene.include]


def _recolour(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    coloured = [requirement for requirement in requirements if "color" in requirement]
    if not coloured:
        return None
    requirement = rng.choice(coloured)
    requirement["color"] = rng.choice([c for c in COLOURS if c != requirement["color"]])
    changed = [
        replace(o, colour=requirement["color"]) if o.shape == requirement["class"] else o for o in scene.objects
    ]
    return _near_miss(scene, changed, requirements, rng)


def _reshape(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    requirement = rng.choice(requirements)
    old = requirement["class"]
    requirement["class"] = rng.choice([s for s in SHAPES if s not in {n["class"] for n in requirements}])
    changed = [replace(o, shape=requirement["class"]) if o.shape == old else o for o in scene.objects]
    return _near_miss(scene, changed, requirements, rng)


def _swap_colours(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    if len(requirements) != 2 or not all("color" in requirement for requirement in requirements):
        return None
    first, second = requirements
    first["color"], second["color"] = second["color"], first["color"]
    colours = {requirement["class"]: requirement["color"] for requirement in requirements}
    return _near_miss(scene, [replace(o, colour=colours[o.shape]) for o in scene.objects], requirements, rng)


def _move(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    if len(requirements) != 2 or "position" not in requirements[1]:
        return None
    relation, index = requirements[1]["position"]
    a, b = scene.objects
    if rng.random() < 0.6:
        # A radius stays with its position, where it is known to fit.
        moved = (replace(a, x=b.x, y=b.y, radius=b.radius), replace(b, x=a.x, y=a.y, radius=a.radius))
        requirements[1]["position"] = [_OPPOSITE[relation], index]
    else:
        moved = (replace(a, x=a.y, y=a.x), replace(b, x=b.y, y=b.x))
        requirements[1]["position"] = [_TRANSPOSED[relation], index]
    return _near_miss(scene, moved, requirements, rng)


def _recount(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    if len(requirements) != 1:
        return None
    requirement = requirements[0]
    old = requirement["count"]
    # Generated images are off by one or two.
    requirement["count"] = rng.choice([n for n in (1, 2, 3, 4) if 0 < abs(n - old) <= 2])
    if requirement["count"] < old:
        return _near_miss(scene, rng.sample(scene.objects, requirement["count"]), requirements, rng)
    return _near_miss(scene, _rearrange(scene, requirements, rng), requirements, rng)


def _drop(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    if len(requirements) != 2:
        return None
    requirement = rng.choice(requirements)
    requirement.pop("position", None)
    return _near_miss(scene, [o for o in scene.objects if o.shape == requirement["class"]], [requirement], rng)


def _add(scene: Scene, rng: random.Random) -> Scene | None:
    requirements = _copy_requirements(scene)
    if len(requirements) != 1 or requirements[0]["count"] != 1:
        return None
    other: dict[str, Any] = {"class": rng.choice([s for s in SHAPES if s != requirements[0]["class"]]), "count": 1}
    if "color" in requirements[0]:
        other["color"] = rng.choice(COLOURS)
    requirements.insert(rng.randrange(2), other)
    return _near_miss(scene, _rearrange(scene, requirements, rng), requirements, rng)


def _rearrange(scene: Scene, requirements: _Requirements, rng: random.Random) -> tuple[Shape, ...]:
    """Return objects in a new layout; shapes that the scene had keep their colour."""
    colours = {o.shape: o.colour for o in scene.objects}
    return tuple(
        replace(o, colour=colours.get(o.shape, o.colour))
        if "color" not in requirement_on(requirements, o.shape)
        else o
        for o in arrange(requirements, rng)
    )


_CHANGES: tuple[Callable[[Scene, random.Random], Scene | None], ...] = (
    _recolour,
    _recolour,
    _reshape,
    _reshape,
    _swap_colours,
    _move,
    _move,
    _recount,
    _recount,
    _drop,
    _add,
)
