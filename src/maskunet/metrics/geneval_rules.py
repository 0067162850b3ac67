"""GenEval's rules: does a picture hold what its prompt asks for, given what a detector found in it?

The rules are those of the benchmark's own scorer, and its words for what is wrong. Of each class the most confident
objects count. Requirements are matched in order, each against the `count` most confident objects of its class; colours
must hold for all of them; a position compares box centres with a tolerance of a tenth of the summed box sizes, against
the objects of an earlier requirement that held; `exclude` limits a count from above.

Reference: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An object counts that is surer than this: in general, and where objects are counted.
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
POSITION_TOLERANCE = 0.1
#: Most objects of a class, and the overlap from which of two objects of a class only the surer counts; 1 is never.
MAX_OBJECTS, MAX_OVERLAP = 16, 1.0
#: The colours that GenEval asks for, in its order.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object found in a picture.

    Args:
        name: its class.
        colour: its colour; None where the detector does not see colours.
        confidence: in [0, 1].
        box: left, top, right, bottom in pixels.
        mask: its pixels (H, W), where the detector gives them.
    """

    name: str
    colour: str | None
    confidence: float
    box: Box
    mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)


def relations(first: Detection, second: Detection) -> set[str]:
    """Return where the first object lies, seen from the second: among left of, right of, above, below."""
    sizes = [(d.box[2] - d.box[0], d.box[3] - d.box[1]) for d in (first, second)]
    centres = [((d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2) for d in (first, second)]
    offset = [centres[0][i] - centres[1][i] for i in (0, 1)]
    kept = [
        math.copysign(max(abs(offset[i]) - POSITION_TOLERANCE * (sizes[0][i] + sizes[1][i]), 0.0), offset[i])
        for i in (0, 1)
    ]
    length = math.hypot(*offset)
    if length == 0 or max(map(abs, kept)) < 1e-3:
        return set()
    dx, dy = kept[0] / length, kept[1] / length
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def overlap(first: Box, second: Box) -> float:
    """Return intersection over union of two boxes, whose right and bottom pixels belong to them."""

    def area(box: Sequence[float]) -> float:
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    corners = [max(first[i], second[i]) for i in (0, 1)] + [min(first[i], second[i]) for i in (2, 3)]
    shared = area(corners)
    union = area(first) + area(second) - shared
    return shared / union if union else 0.0


def select(
    detections: Sequence[Detection], *, counting: bool, max_overlap: float = MAX_OVERLAP
) -> dict[str, list[Detection]]:
    """Return the objects that count, by class, the surest first.

    Args:
        detections: what was found in a picture.
        counting: whether objects are counted, so that only sure ones count.
        max_overlap: of two objects of a class whose boxes overlap so much, the less sure one is left out; 1 is GenEval's,
            which leaves out none.
    """
    least = COUNTING_THRESHOLD if counting else THRESHOLD
    kept: dict[str, list[Detection]] = {}
    for name in dict.fromkeys(d.name for d in detections):
        sure = sorted((d for d in detections if d.name == name and d.confidence > least), key=lambda d: -d.confidence)
        chosen: list[Detection] = []
        for found in sure[:MAX_OBJECTS]:
            if max_overlap >= 1 or all(overlap(other.box, found.box) < max_overlap for other in chosen):
                chosen.append(found)
        if chosen:
            kept[name] = chosen
    return kept


def check(
    detections: Sequence[Detection],
    metadata: Mapping[str, Any],
    colours: Callable[[Sequence[Detection]], Sequence[str]] | None = None,
) -> str | None:
    """Check one picture against its requirement.

    Args:
        detections: what was found in the picture.
        metadata: an entry of `evaluation_metadata.jsonl`: `tag`, `include`, and `exclude` where counts are limited.
        colours: names the colours of objects; the detections' own if None.

    Returns:
        None if the picture is right, else what is wrong in GenEval's words, a line each.
    """
    kept = select(detections, counting=metadata.get("tag") == "counting")
    groups: list[list[Detection] | None] = []
    wrong: list[str] = []
    for need in metadata.get("include", ()):
        name, count = need["class"], need["count"]
        found = kept.get(name, [])[:count]
        if len(found) < count:
            problem: str | None = f"expected {name}>={count}, found {len(found)}"
        else:
            problem = _wrong_colour(found, need, colours) or _wrong_place(found, need, groups)
        groups.append(None if problem else found)
        wrong += [problem] if problem else []
    for limit in metadata.get("exclude", ()):
        name, count = limit["class"], limit["count"]
        if len(kept.get(name, ())) >= count:
            wrong.append(f"expected {name}<{count}, found {len(kept[name])}")
    return "\n".join(wrong) or None


def _wrong_colour(
    found: Sequence[Detection],
    need: Mapping[str, Any],
    colours: Callable[[Sequence[Detection]], Sequence[str]] | None,
) -> str | None:
    wanted, name, count = need.get("color"), need["class"], need["count"]
    if wanted is None:
        return None
    seen = [str(d.colour) for d in found] if colours is None else list(colours(found))
    if seen.count(wanted) >= count:
        return None
    order = sorted(set(seen), key=lambda c: (COLOURS.index(c) if c in COLOURS else len(COLOURS), c))
    counted = ", ".join(f"{seen.count(c)} {c}" for c in order)
    return f"expected {wanted} {name}>={count}, found {seen.count(wanted)} {wanted}; and {counted}"


def _wrong_place(
    found: Sequence[Detection], need: Mapping[str, Any], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    if "position" not in need:
        return None
    relation, target = need["position"]
    others = groups[target]
    if others is None:
        return f"no target for {need['class']} to be {relation}"
    for one in found:
        for other in others:
            seen = relations(one, other)
            if relation not in seen:
                return f"expected {need['class']} {relation} target, found {' and '.join(sorted(seen))} target"
    return None
