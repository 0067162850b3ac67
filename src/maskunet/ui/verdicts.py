"""What the page says about a picture, and about what a person asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import DataError
from ..metrics.geneval_rules import check, select
from ..shapes.captions import read_caption
from ..shapes.judge import judge
from ..shapes.vocabulary import COUNT_WORDS, plural

#: How the rules say that an object is there, but in the wrong place; and that another of its shape counts.
_MISPLACED = re.compile(r"expected (\w+) [\w ]+ target, found ([\w ]*) target")
_OTHER_COLOUR = re.compile(r"expected (\w+) (\w+)>=1, found 0 \w+; and 1 (\w+)")


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a picture.

    Args:
        right: whether it holds what was asked for; None where the prompt is no caption of the shapes world.
        text: the same as a sentence.
    """

    right: bool | None
    text: str


def verdicts(pictures: Tensor, prompt: str) -> list[Verdict]:
    """Let the judge of the shapes world say whether pictures (N, 3, H, W) in [0, 1] hold what the prompt asks for."""
    asked, found = read_caption(prompt), []
    for detections in judge(pictures):
        kept = select(detections, counting=asked is not None and asked.task == "counting")
        objects = [(d.colour or "", d.name) for same in kept.values() for d in same]
        seen = _listed(objects)
        if asked is None:
            found.append(Verdict(None, f"it sees {seen}; it cannot tell whether that is what the prompt asks for"))
        elif wrong := check(detections, asked.metadata()):
            why = _why(wrong, objects)
            found.append(Verdict(False, f"wrong: expected {asked.prompt}, found {seen}{why}"))
        else:
            found.append(Verdict(True, f"right: {seen}"))
    return found


def _why(wrong: str, objects: Sequence[tuple[str, str]]) -> str:
    """Say what a list of the objects does not: a wrong place, or that the surest object of a shape is another one."""
    if place := _MISPLACED.search(wrong):
        return f", where the {place[1]} is {place[2] or 'in no clear place'}"
    if (other := _OTHER_COLOUR.search(wrong)) and (other[1], other[2]) in objects:
        return f", of which the surest {other[2]} is {other[3]}"
    return ""


def _listed(objects: Sequence[tuple[str, str]]) -> str:
    """Say in words which coloured shapes there are."""
    words = []
    for colour, name in dict.fromkeys(objects):
        count = objects.count((colour, name))
        number = ("an" if colour[:1] in "aeiou" else "a") if count == 1 else COUNT_WORDS.get(count, str(count))
        words.append(f"{number} {colour} {name if count == 1 else plural(name)}")
    if len(words) < 2:
        return words[0] if words else "no object that it is sure of"
    return ", ".join(words[:-1]) + " and " + words[-1]


def whole(value: Any, name: str, least: int, most: int) -> int:
    """Return a whole number that came from a page.

    Raises:
        DataError: it is none, or out of range.
    """
    number = real(value, name, least, most)
    if number != int(number):
        raise DataError(f"expected a whole number for {name}, got {value!r}")
    return int(number)


def real(value: Any, name: str, least: float, most: float) -> float:
    """Return a number that came from a page.

    Raises:
        DataError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        came = "nothing" if value is None else repr(value)
        raise DataError(f"expected {name} from {least:g} to {most:g}, got {came}")
    return value


def sentence(error: Exception) -> str:
    """Return an error's message as one sentence."""
    text = " ".join(str(error).split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
