"""GenEval's rules: does a picture hold what its prompt asks for, given what a detector found in it?

The rules are those of the benchmark's own scorer: requirements are matched in order, each against the `count` most
confident objects of its class; colours must hold for all of them; a position compares box centres with a tolerance of
a tenth of the summed box sizes; `exclude` limits a count from above.

Reference: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Least confidence of an object that counts: in general, and where objects are counted.
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
POSITION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Detection:
    """An object found in a picture.

    Args:
        name: its class.
        colour: its colour.
        confidence: in [0, 1].
        box: left, top, right, bottom in pixels.
    """

    name: str
    colour: str
    confidence: float
    box: tuple[float, float, float, float]


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


def check(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> str | None:
    """Check one picture against its requirement.

    Args:
        detections: what was found in the picture.
        metadata: an entry of `evaluation_metadata.jsonl`: `tag`, `include`, and `exclude` where counts are limited.

    Returns:
        None if the picture is right, else the first reason why it is not.
    """
    least = COUNTING_THRESHOLD if metadata.get("tag") == "counting" else THRESHOLD
    kept = sorted((d for d in detections if d.confidence >= least), key=lambda d: -d.confidence)
    groups: list[list[Detection]] = []
    for need in metadata.get("include", ()):
        name, count = need["class"], need["count"]
        found = [d for d in kept if d.name == name][:count]
        groups.append(found)
        if len(found) < count:
            return f"expected {name} x {count}, found {len(found)}"
        if "color" in need and any(d.colour != need["color"] for d in found):
            seen = ", ".join(d.colour for d in found)
            return f"expected {need['color']} {name} x {count}, found {seen}"
        if "position" in need:
            relation, target = need["position"]
            for one in found:
                for other in groups[target]:
                    if relation not in relations(one, other):
                        return f"expected {name} {relation} {other.name}"
    for limit in metadata.get("exclude", ()):
        found = [d for d in kept if d.name == limit["class"]]
        if len(found) >= limit["count"]:
            return f"expected {limit['class']} < {limit['count']}, found {len(found)}"
    return None
