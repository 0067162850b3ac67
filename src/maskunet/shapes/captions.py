"""Parse captions of the shapes world, so that the judge can check an image of any such prompt."""

from __future__ import annotations

import re
from typing import Any

from .scenes import Prompt
from .vocabulary import COLOURS, COUNT_WORDS, RELATIONS, SHAPES, plural

_COUNTS = {"a": 1, "an": 1} | {word: count for count, word in COUNT_WORDS.items()}
_CLASSES = {shape: shape for shape in SHAPES} | {plural(shape): shape for shape in SHAPES}
_OBJECT = rf"({'|'.join(_COUNTS)}) (?:({'|'.join(COLOURS)}) )?({'|'.join(sorted(_CLASSES, key=len, reverse=True))})"
_LINK = rf"(and|(?:to the )?(?:{'|'.join(RELATIONS)}))"
_CAPTION = re.compile(rf"(?:a picture of )?{_OBJECT}(?: {_LINK} {_OBJECT})?(?: on a plain background)?")


def read_caption(caption: str) -> Prompt | None:
    """Return a caption's requirements, or None if it is not one of the world's captions.

    Args:
        caption: such as "a red circle", "three stars", "a ring above a blue heart" or "a star and a cross". Case, double
            spaces and a final full stop do not matter. Captions of two objects of one shape give None, since the rules
            distinguish objects by shape.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip(" ."))
    if match is None:
        return None
    first, link = _requirement(*match.group(1, 2, 3)), match.group(4)
    if link is None:
        count = first["count"]
        task = "counting" if count > 1 else "colors" if "color" in first else "single_object"
        exclude = ({"class": first["class"], "count": count + 1},) if count > 1 else ()
        return Prompt(caption, task, (first,), exclude)
    second = _requirement(*match.group(5, 6, 7))
    if first["class"] == second["class"] or first["count"] + second["count"] > 2:
        return None
    if link != "and":  # the rules match in order, so the reference object comes first
        return Prompt(caption, "position", (second, first | {"position": [link.removeprefix("to the "), 0]}))
    task = "color_attr" if "color" in first or "color" in second else "two_object"
    return Prompt(caption, task, (first, second))


def _requirement(count: str, colour: str | None, shape: str) -> dict[str, Any]:
    requirement: dict[str, Any] = {"class": _CLASSES[shape], "count": _COUNTS[count]}
    return requirement | ({} if colour is None else {"color": colour})
