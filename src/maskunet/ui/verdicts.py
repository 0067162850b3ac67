"""Text of the page about an image: the judge's verdict as a sentence, and errors as sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..metrics.geneval_rules import check, select
from ..shapes.captions import read_caption
from ..shapes.judge import judge
from ..shapes.vocabulary import COUNT_WORDS, plural

#: How the rules report an object in the wrong place, and a surer object of the same shape in another colour.
_MISPLACED = re.compile(r"expected (\w+) [\w ]+ target, found ([\w ]*) target")
_OTHER_COLOUR = re.compile(r"expected (\w+) (\w+)>=1, found 0 \w+; and 1 (\w+)")


@dataclass(frozen=True)
class Verdict:
    """The judge's verdict on an image.

    Args:
        is_correct: whether the image matches the prompt; None if the prompt is no caption of the shapes world.
        text: the same as a sentence.
    """

    is_correct: bool | None
    text: str


def verdicts(images: Tensor, prompt: str) -> list[Verdict]:
    """Judge images of the shapes world against a prompt.

    Args:
        images: (N, 3, H, W) in [0, 1].
        prompt: the prompt of all of them.
    """
    request, results = read_caption(prompt), []
    for detections in judge(images):
        selected = select(detections, counting=request is not None and request.task == "counting")
        objects = [(d.colour or "", d.name) for group in selected.values() for d in group]
        seen = _describe(objects)
        if request is None:
            results.append(Verdict(None, f"it sees {seen}; it cannot tell whether that matches the prompt"))
        elif reason := check(detections, request.metadata()):
            detail = _explain(reason, objects)
            results.append(Verdict(False, f"wrong: expected {request.prompt}, found {seen}{detail}"))
        else:
            results.append(Verdict(True, f"right: {seen}"))
    return results


def _explain(reason: str, objects: Sequence[tuple[str, str]]) -> str:
    """Details that a list of the objects lacks: a wrong place, or a surer object of the same shape."""
    if misplaced := _MISPLACED.search(reason):
        return f", where the {misplaced[1]} is {misplaced[2] or 'in no clear place'}"
    if (other := _OTHER_COLOUR.search(reason)) and (other[1], other[2]) in objects:
        return f", of which the surest {other[2]} is {other[3]}"
    return ""


def _describe(objects: Sequence[tuple[str, str]]) -> str:
    """List the coloured shapes of an image as text."""
    words = []
    for colour, name in dict.fromkeys(objects):
        count = objects.count((colour, name))
        number = ("an" if colour[:1] in "aeiou" else "a") if count == 1 else COUNT_WORDS.get(count, str(count))
        words.append(f"{number} {colour} {name if count == 1 else plural(name)}")
    if len(words) < 2:
        return words[0] if words else "no object that it is sure of"
    return ", ".join(words[:-1]) + " and " + words[-1]


def sentence(error: Exception) -> str:
    """Return an error's message as one sentence.

    Args:
        error: the error.
    """
    text = " ".join(str(error).split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
