"""What the page says about a picture, and about what a person asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import DataError
from ..metrics.geneval import THRESHOLD, Detection, check
from ..shapes.captions import read_caption
from ..shapes.judge import judge
from ..shapes.vocabulary import COUNT_WORDS, plural

#: How the rules say that an object is there, but in the wrong place.
_MISPLACED = re.compile(r"expected (\w+) [\w ]+ target, found ([\w ]*) target")


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
        seen = _listed(detections)
        if asked is None:
            found.append(Verdict(None, f"it sees {seen}; it cannot tell whether that is what the prompt asks for"))
        elif wrong := check(detections, asked.metadata()):
            place = _MISPLACED.search(wrong)
            where = f", where the {place[1]} is {place[2] or 'in no clear place'}" if place else ""
            found.append(Verdict(False, f"wrong: expected {asked.prompt}, found {seen}{where}"))
        else:
            found.append(Verdict(True, f"right: {seen}"))
    return found


def _listed(detections: Sequence[Detection]) -> str:
    sure = [(d.colour or "", d.name) for d in detections if d.confidence > THRESHOLD]
    if not sure:
        return "no object that it knows"
    words = []
    for colour, name in dict.fromkeys(sure):
        count = sure.count((colour, name))
        number = ("an" if colour[:1] in "aeiou" else "a") if count == 1 else COUNT_WORDS.get(count, str(count))
        words.append(f"{number} {colour} {name if count == 1 else plural(name)}")
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


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
