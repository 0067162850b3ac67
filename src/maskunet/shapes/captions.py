"""Read a caption of the shapes world back: what it asks for, so that a judge can check a picture of any such prompt."""

from __future__ import annotations

import re
from typing import Any

from .scenes import Prompt
from .vocabulary import COLOURS, COUNT_WORDS, RELATIONS, SHAPES, plural

_COUNTS = {"a": 1, "an": 1} | {word: count for count, word in COUNT_WORDS.items()}
_CLASSES = {shape: shape for shape in SHAPES} | {plural(shape): shape for shape in SHAPES}
_THING = rf"({'|'.join(_COUNTS)}) (?:({'|'.join(COLOURS)}) )?({'|'.join(sorted(_CLASSES, key=len, reverse=True))})"
_TIE = rf"(and|(?:to the )?(?:{'|'.join(RELATIONS)}))"
_CAPTION = re.compile(rf"(?:a picture of )?{_THING}(?: {_TIE} {_THING})?(?: on a plain background)?")


def read_caption(caption: str) -> Prompt | None:
    """Return what a caption asks for, or None where it is not one of the world's captions.

    Args:
        caption: as "a red circle", "three stars", "a ring above a blue heart" or "a star and a cross"; case, double spaces
            and a full stop at the end do not matter. Two objects of one shape are not read: the rules tell them apart by
            shape.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip(" ."))
    if match is None:
        return None
    first, tie = _need(*match.group(1, 2, 3)), match.group(4)
    if tie is None:
        count = first["count"]
        task = "counting" if count > 1 else "colors" if "color" in first else "single_object"
        exclude = ({"class": first["class"], "count": count + 1},) if count > 1 else ()
        return Prompt(caption, task, (first,), exclude)
    second = _need(*match.group(5, 6, 7))
    if first["class"] == second["class"] or first["count"] + second["count"] > 2:
        return None
    if tie != "and":  # the rules match in order, so the object referred to comes first
        return Prompt(caption, "position", (second, first | {"position": [tie.removeprefix("to the "), 0]}))
    task = "color_attr" if "color" in first or "color" in second else "two_object"
    return Prompt(caption, task, (first, second))


def _need(count: str, colour: str | None, shape: str) -> dict[str, Any]:
    need: dict[str, Any] = {"class": _CLASSES[shape], "count": _COUNTS[count]}
    return need | ({} if colour is None else {"color": colour})
