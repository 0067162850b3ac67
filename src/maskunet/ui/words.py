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


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a picture.

    Args:
        right: whether it holds what was asked for; None where the prompt is no caption of the shapes world.
        why: what is wrong, empty where nothing is.
        seen: the objects in it, in words.
    """

    right: bool | None
    why: str
    seen: str

    @property
    def text(self) -> str:
        """The verdict as a sentence."""
        if self.right is None:
            return f"it sees {self.seen}; it cannot say whether that is right, since the prompt is not of its world"
        return f"right, it sees {self.seen}" if self.right else f"wrong: {self.why}; it sees {self.seen}"


def verdicts(pictures: Tensor, prompt: str) -> list[Verdict]:
    """Let the judge of the shapes world say whether pictures (N, 3, H, W) in [0, 1] hold what the prompt asks for."""
    asked, found = read_caption(prompt), []
    for detections in judge(pictures):
        wrong = None if asked is None else check(detections, asked.metadata())
        found.append(Verdict(None if asked is None else wrong is None, _plain(wrong or ""), _listed(detections)))
    return found


def _plain(wrong: str) -> str:
    """Say in words what the rules say in signs: "expected circle>=2" is "expected at least 2 circles"."""

    def bound(match: re.Match[str]) -> str:
        what, sign, count = match.groups()
        number = f"fewer than {count}" if sign == "<" else "1" if count == "1" else f"at least {count}"
        return f"expected {number} {what if count == '1' else plural(what)}"

    text = re.sub(r"expected ([\w ]+?)(>=|<)(\d+)", bound, wrong)
    text = re.sub(r"no target for (\w+) to be (.*)", r"there is nothing for the \1 to be \2", text)
    text = re.sub(r"found +target", "found it in no clear place", text).replace(" target", " the other")
    return text.replace("; and", " and").replace("\n", "; ")


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
