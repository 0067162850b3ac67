"""Scenes that differ from a given one in one thing, and whether a scene shows what a caption asks for.

A reward that is trained to tell a scene from its near misses has to look at what a generated picture gets wrong: a
colour, a shape, a number, a place, or which object has which colour. Nothing in a near miss leaves the allowed splits,
since a combination that only ever occurs in wrong captions would be learnt as wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .scenes import Scene, Shape, arrange, phrase, requested
from .vocabulary import COLOURS, SHAPES, Split, colour_split, count_split, pair_split, way_along

_Needs = list[dict[str, Any]]
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_TURNED = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}


def shows(scene: Scene, needs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a scene may be described by a caption: these objects and no others, in these colours and places.

    Args:
        scene: what is in the picture.
        needs: what the caption asks for, in GenEval's keys. A place counts as met as soon as the object lies on that
            side at all, so that what is in doubt is never called wrong.
    """
    if len(scene.objects) != sum(need["count"] for need in needs):
        return False
    for need in needs:
        mine = [o for o in scene.objects if o.shape == need["class"]]
        if len(mine) != need["count"] or any(o.colour != need.get("color", o.colour) for o in mine):
            return False
        if "position" in need:
            relation, index = need["position"]
            other = next(o for o in scene.objects if o.shape == needs[index]["class"])
            dx, dy = mine[0].x - other.x, mine[0].y - other.y
            if way_along(relation, dx, dy) <= 0:
                return False
    return True


def near_misses(scene: Scene, rng: random.Random, count: int, splits: Sequence[Split] = ("train",)) -> list[Scene]:
    """Return scenes that differ from `scene` in one thing that its caption says.

    Args:
        scene: a scene; objects, layout and ground stay as they are where the change allows it.
        rng: draws the changes.
        count: how many; they differ from each other where there are enough.
        splits: where the combinations of a near miss may come from.
    """
    found: list[Scene] = []
    for attempt in range(60 * count):
        changed = rng.choice(_CHANGES)(scene, rng)
        if changed is None or not _allowed(changed, splits):
            continue
        if shows(changed, scene.include) or shows(scene, changed.include):
            continue
        if any(changed.include == other.include for other in found) and attempt < 30 * count:
            continue
        found.append(changed)
        if len(found) == count:
            return found
    raise ValueError(f"expected {count} near misses of {scene.caption!r} in {', '.join(splits)}, found {len(found)}")


def _allowed(scene: Scene, splits: Sequence[Split]) -> bool:
    if any(colour_split(o.colour, o.shape) not in splits for o in scene.objects):
        return False
    needs = scene.include
    if len(needs) == 1 and needs[0]["count"] > 1:
        return count_split(needs[0]["count"], needs[0]["class"]) in splits
    return len(needs) == 1 or pair_split(needs[0]["class"], needs[1]["class"]) in splits


def _made(scene: Scene, objects: Sequence[Shape], needs: _Needs, rng: random.Random) -> Scene:
    return Scene(tuple(objects), phrase(needs, rng), _task(needs), tuple(needs), seed=scene.seed)


def _task(needs: _Needs) -> str:
    if len(needs) == 2:
        if "position" in needs[1]:
            return "position"
        return "color_attr" if "color" in needs[0] and "color" in needs[1] else "two_object"
    if needs[0]["count"] > 1:
        return "counting"
    return "colors" if "color" in needs[0] else "single_object"


def _needs(scene: Scene) -> _Needs:
    return [dict(need) for need in scene.include]


def _recolour(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    coloured = [need for need in needs if "color" in need]
    if not coloured:
        return None
    need = rng.choice(coloured)
    need["color"] = rng.choice([c for c in COLOURS if c != need["color"]])
    changed = [replace(o, colour=need["color"]) if o.shape == need["class"] else o for o in scene.objects]
    return _made(scene, changed, needs, rng)


def _reshape(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    need = rng.choice(needs)
    old = need["class"]
    need["class"] = rng.choice([s for s in SHAPES if s not in {n["class"] for n in needs}])
    changed = [replace(o, shape=need["class"]) if o.shape == old else o for o in scene.objects]
    return _made(scene, changed, needs, rng)


def _exchange(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    if len(needs) != 2 or not all("color" in need for need in needs):
        return None
    first, second = needs
    first["color"], second["color"] = second["color"], first["color"]
    colours = {need["class"]: need["color"] for need in needs}
    return _made(scene, [replace(o, colour=colours[o.shape]) for o in scene.objects], needs, rng)


def _move(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    if len(needs) != 2 or "position" not in needs[1]:
        return None
    relation, index = needs[1]["position"]
    if rng.random() < 0.6:
        a, b = scene.objects
        # Radii stay with the places, where they are known to fit.
        places = (replace(a, x=b.x, y=b.y, radius=b.radius), replace(b, x=a.x, y=a.y, radius=a.radius))
        needs[1]["position"] = [_OPPOSITE[relation], index]
    else:
        a, b = scene.objects
        places = (replace(a, x=a.y, y=a.x), replace(b, x=b.y, y=b.x))
        needs[1]["position"] = [_TURNED[relation], index]
    return _made(scene, places, needs, rng)


def _recount(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    if len(needs) != 1:
        return None
    need = needs[0]
    old = need["count"]
    # The nearest numbers are what a picture gets wrong.
    need["count"] = rng.choice([n for n in (1, 2, 3, 4) if 0 < abs(n - old) <= 2])
    if need["count"] < old:
        return _made(scene, rng.sample(scene.objects, need["count"]), needs, rng)
    return _made(scene, _like(scene, needs, rng), needs, rng)


def _drop(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    if len(needs) != 2:
        return None
    need = rng.choice(needs)
    need.pop("position", None)
    return _made(scene, [o for o in scene.objects if o.shape == need["class"]], [need], rng)


def _add(scene: Scene, rng: random.Random) -> Scene | None:
    needs = _needs(scene)
    if len(needs) != 1 or needs[0]["count"] != 1:
        return None
    other: dict[str, Any] = {"class": rng.choice([s for s in SHAPES if s != needs[0]["class"]]), "count": 1}
    if "color" in needs[0]:
        other["color"] = rng.choice(COLOURS)
    needs.insert(rng.randrange(2), other)
    return _made(scene, _like(scene, needs, rng), needs, rng)


def _like(scene: Scene, needs: _Needs, rng: random.Random) -> tuple[Shape, ...]:
    """Objects in a new layout; those of a shape that was there keep their colour."""
    colours = {o.shape: o.colour for o in scene.objects}
    return tuple(
        replace(o, colour=colours.get(o.shape, o.colour)) if "color" not in requested(needs, o.shape) else o
        for o in arrange(needs, rng)
    )


_CHANGES: tuple[Callable[[Scene, random.Random], Scene | None], ...] = (
    _recolour,
    _recolour,
    _reshape,
    _reshape,
    _exchange,
    _move,
    _move,
    _recount,
    _recount,
    _drop,
    _add,
)
