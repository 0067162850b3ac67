"""GenEval's rules: whether an image matches its prompt, from the objects that a detector sees in it.

Rules and messages are those of the benchmark's own scorer. Requirements are matched in order, each against the `count`
most confident objects of its class. A colour must hold for all of them. A position compares box centres, with a
tolerance of a tenth of the summed box sizes, against the objects of an earlier requirement that held. `exclude` limits a
count from above.

Reference: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An object counts above this confidence: in general, and where objects are counted.
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
POSITION_TOLERANCE = 0.1
#: Most objects per class, and the overlap from which the less confident of two objects of a class is dropped; 1 is never.
MAX_OBJECTS, MAX_OVERLAP = 16, 1.0
#: GenEval's colours, in its order.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """A detected object.

    Args:
        name: its class.
        colour: its colour; None if the detector sees no colours.
        confidence: in [0, 1].
        box: left, top, right, bottom in pixels.
        mask: its pixels (H, W); None if the detector returns boxes only.
    """

    name: str
    colour: str | None
    confidence: float
    box: Box
    mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)


def relations(first: Detection, second: Detection) -> set[str]:
    """Return the position of one object relative to another.

    Args:
        first: the object.
        second: the object that it is compared with.

    Returns:
        Those of "left of", "right of", "above" and "below" that hold.
    """
    sizes = [(d.box[2] - d.box[0], d.box[3] - d.box[1]) for d in (first, second)]
    centres = [((d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2) for d in (first, second)]
    offset = [centres[0][i] - centres[1][i] for i in (0, 1)]
    beyond = [
        math.copysign(max(abs(offset[i]) - POSITION_TOLERANCE * (sizes[0][i] + sizes[1][i]), 0.0), offset[i])
        for i in (0, 1)
    ]
    length = math.hypot(*offset)
    if length == 0 or max(map(abs, beyond)) < 1e-3:
        return set()
    dx, dy = beyond[0] / length, beyond[1] / length
    positions = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in positions.items() if holds}


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes, which include their right and bottom pixels.

    Args:
        first: a box.
        second: another.
    """

    def area(box: Sequence[float]) -> float:
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    corners = [max(first[i], second[i]) for i in (0, 1)] + [min(first[i], second[i]) for i in (2, 3)]
    shared = area(corners)
    union = area(first) + area(second) - shared
    return shared / union if union else 0.0


def select(
    detections: Sequence[Detection], *, counting: bool, max_overlap: float = MAX_OVERLAP
) -> dict[str, list[Detection]]:
    """Return the objects that count, by class, most confident first.

    Args:
        detections: the objects in an image.
        counting: whether objects are counted, which needs a higher confidence.
        max_overlap: overlap in [0, 1] from which the less confident of two objects of a class is dropped; 1, GenEval's,
            drops none.
    """
    least = COUNTING_THRESHOLD if counting else THRESHOLD
    by_class: dict[str, list[Detection]] = {}
    for name in dict.fromkeys(d.name for d in detections):
        confident = [d for d in detections if d.name == name and d.confidence > least]
        selected: list[Detection] = []
        for detection in sorted(confident, key=lambda d: -d.confidence)[:MAX_OBJECTS]:
            if max_overlap >= 1 or all(overlap(other.box, detection.box) < max_overlap for other in selected):
                selected.append(detection)
        if selected:
            by_class[name] = selected
    return by_class


def check(
    detections: Sequence[Detection],
    metadata: Mapping[str, Any],
    colours: Callable[[Sequence[Detection]], Sequence[str]] | None = None,
) -> str | None:
    """Check one image against its prompt's requirements.

    Args:
        detections: the objects in the image.
        metadata: an entry of `evaluation_metadata.jsonl`: `tag`, `include`, and `exclude` if counts are limited.
        colours: function from objects to the names of their colours; the detections' own if None.

    Returns:
        None if the image matches, else GenEval's messages, one line per failed requirement.
    """
    by_class = select(detections, counting=metadata.get("tag") == "counting")
    groups: list[list[Detection] | None] = []
    failures: list[str] = []
    for need in metadata.get("include", ()):
        name, count = need["class"], need["count"]
        objects = by_class.get(name, [])[:count]
        if len(objects) < count:
            failure: str | None = f"expected {name}>={count}, found {len(objects)}"
        else:
            failure = _wrong_colour(objects, need, colours) or _wrong_position(objects, need, groups)
        groups.append(None if failure else objects)
        failures += [failure] if failure else []
    for limit in metadata.get("exclude", ()):
        name, count = limit["class"], limit["count"]
        if len(by_class.get(name, ())) >= count:
            failures.append(f"expected {name}<{count}, found {len(by_class[name])}")
    return "\n".join(failures) or None


def _wrong_colour(
    objects: Sequence[Detection],
    need: Mapping[str, Any],
    colours: Callable[[Sequence[Detection]], Sequence[str]] | None,
) -> str | None:
    expected, name, count = need.get("color"), need["class"], need["count"]
    if expected is None:
        return None
    seen = [str(d.colour) for d in objects] if colours is None else list(colours(objects))
    if seen.count(expected) >= count:
        return None
    order = sorted(set(seen), key=lambda c: (COLOURS.index(c) if c in COLOURS else len(COLOURS), c))
    counts = ", ".join(f"{seen.count(c)} {c}" for c in order)
    return f"expected {expected} {name}>={count}, found {seen.count(expected)} {expected}; and {counts}"


def _wrong_position(
    objects: Sequence[Detection], need: Mapping[str, Any], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    if "position" not in need:
        return None
    relation, target = need["position"]
    others = groups[target]
    if others is None:
        return f"no target for {need['class']} to be {relation}"
    for detection in objects:
        for other in others:
            actual = relations(detection, other)
            if relation not in actual:
                return f"expected {need['class']} {relation} target, found {' and '.join(sorted(actual))} target"
    return None
