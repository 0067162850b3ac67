"""What the matcher learns of pictures of two shapes: all that may be said of their places, and whose colour is which.

Of a scene with two shapes, one of each, every relation is put into words in both orders; each caption is right, wrong, or
in doubt by the centres of the two. Besides, captions with the true colours stand against the same with colours exchanged
or one of them another: captions of relations alone, whose colours are never wrong, teach a matcher to pass colours over.
Nothing has to be drawn for a wrong caption, and none names a pair outside the training split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ...shapes.scenes import Scene, phrase
from ...shapes.vocabulary import COLOURS, RELATIONS, colour_split, way_along
from .denoiser import tokenize
from .tokenizer import MAX_LENGTH

#: Of the way between two centres along a direction, as a share of the whole way: from here on a relation holds.
_HOLDS = 0.75
#: Up to here it does not; in between it is in doubt.
_FAILS = 0.4
#: Relations in both orders.
CAPTIONS = 2 * len(RELATIONS)
#: Pairs of captions of a scene that differ in colours alone.
PAIRS = 6


def holds(ahead: float, distance: float) -> bool | None:
    """Whether a relation holds between two centres; None where it is in doubt.

    Args:
        ahead: way from the one to the other along the relation's direction, in pixels; negative on the other side.
        distance: between them, in pixels.
    """
    share = ahead / max(distance, 1e-6)
    return True if share >= _HOLDS else False if share <= _FAILS else None


def relation_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Return, for each token id, whether it is what tells relations apart: "left", "right", "above" or "below"."""
    found = torch.zeros(len(tokenizer), dtype=torch.bool)
    for relation in RELATIONS:
        found[tokenizer(relation.split()[0], add_special_tokens=False)["input_ids"]] = True
    return found


class Relations:
    """Captions of relations for those of N scenes that show two different shapes.

    Args:
        scenes: all scenes, in the order that indices refer to.
        tokenizer: of the captions.
        seed: chooses the wordings.
    """

    def __init__(self, scenes: Sequence[Scene], tokenizer: CLIPTokenizer, seed: int) -> None:
        verdicts: list[list[int]] = []

        def say(number: int, scene: Scene) -> list[str]:
            said, found = _described(scene, random.Random(f"relations/{seed}/{number}"))
            verdicts.append(found)
            return said

        self._row, self._ids = _table(scenes, tokenizer, say, CAPTIONS)
        self._verdicts = torch.tensor(verdicts).view(-1, CAPTIONS)

    def draw(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a right and a wrong caption for each of the pictures that have both.

        Args:
            index: numbers of the pictures' scenes, (B,).
            generator: draws the captions.

        Returns:
            Rows of `index` (2 M,), token ids (2 M, L), and whether each is right (2 M,): M right ones, then M wrong ones.
        """
        rows = self._row[index]
        there = (rows >= 0).nonzero().flatten()
        verdicts = self._verdicts[rows[there]]
        both = (verdicts == 1).any(1) & (verdicts == 0).any(1)
        there, verdicts = there[both], verdicts[both]
        chosen = torch.rand(2, *verdicts.shape, generator=generator)
        # The largest draw among the right ones, and among the wrong ones.
        which = torch.cat([(chosen[k] * (verdicts == 1 - k)).argmax(1) for k in (0, 1)])
        there = there.repeat(2)
        right = torch.arange(len(there)) < len(there) // 2
        return there, self._ids[rows[there], which], right


class Bindings:
    """Captions that name the colours of two different shapes, for those of N scenes that show them.

    Args:
        scenes: all scenes, in the order that indices refer to.
        tokenizer: of the captions.
        seed: chooses the wordings and the wrong colours.
    """

    def __init__(self, scenes: Sequence[Scene], tokenizer: CLIPTokenizer, seed: int) -> None:
        def say(number: int, scene: Scene) -> list[str]:
            return _coloured(scene, random.Random(f"bindings/{seed}/{number}"))

        self._row, ids = _table(scenes, tokenizer, say, 2 * PAIRS)
        self._ids = ids.unflatten(1, (PAIRS, 2))

    def draw(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a caption with the true colours and the same with wrong ones for each of the pictures of two shapes.

        Args:
            index: numbers of the pictures' scenes, (B,).
            generator: draws the captions.

        Returns:
            Rows of `index` (2 M,), token ids (2 M, L), and whether each is right (2 M,): M right ones, then M wrong ones.
        """
        rows = self._row[index]
        there = (rows >= 0).nonzero().flatten()
        which = torch.randint(PAIRS, (len(there),), generator=generator)
        ids = self._ids[rows[there], which].transpose(0, 1).flatten(0, 1)
        return there.repeat(2), ids, torch.arange(len(ids)) < len(there)


def _table(
    scenes: Sequence[Scene], tokenizer: CLIPTokenizer, say: Callable[[int, Scene], list[str]], count: int
) -> tuple[Tensor, Tensor]:
    """Return each scene's row (N,), -1 without two shapes, and token ids of what is said of the others (M, count, L)."""
    row, captions = torch.full((len(scenes),), -1), list[str]()
    for number, scene in enumerate(scenes):
        if _two_shapes(scene):
            row[number] = len(captions) // count
            captions += say(number, scene)
    ids = tokenize(tokenizer, captions) if captions else torch.zeros(0, MAX_LENGTH, dtype=torch.long)
    return row, ids.view(-1, count, ids.shape[-1])


def _two_shapes(scene: Scene) -> bool:
    return len(scene.objects) == 2 and scene.objects[0].shape != scene.objects[1].shape


def _coloured(scene: Scene, rng: random.Random) -> list[str]:
    """Return captions with the true colours, each followed by the same with wrong ones: 2 * PAIRS."""
    captions = []
    for number in range(PAIRS):
        pair = scene.objects if number % 2 else scene.objects[::-1]
        needs: list[dict[str, Any]] = [{"class": o.shape, "count": 1, "color": o.colour} for o in pair]
        dx, dy = pair[1].x - pair[0].x, pair[1].y - pair[0].y
        distance = (dx**2 + dy**2) ** 0.5
        true = [relation for relation in RELATIONS if holds(way_along(relation, dx, dy), distance)]
        if true and number >= PAIRS // 2:
            needs[1]["position"] = [rng.choice(true), 0]
        captions += [phrase(some, rng) for some in (needs, _miscoloured(needs, rng))]
    return captions


def _miscoloured(needs: Sequence[Mapping[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Return needs with their two colours exchanged, where the split allows it, or else with one of them another."""
    first, second = needs
    exchanged = [dict(first) | {"color": second["color"]}, dict(second) | {"color": first["color"]}]
    allowed = all(colour_split(n["color"], n["class"]) == "train" for n in exchanged)
    if allowed and first["color"] != second["color"] and rng.random() < 0.7:
        return exchanged
    wrong = [dict(need) for need in needs]
    one = rng.choice(wrong)
    others = [c for c in COLOURS if c != one["color"] and colour_split(c, one["class"]) == "train"]
    one["color"] = rng.choice(others)
    return wrong


def _described(scene: Scene, rng: random.Random) -> tuple[list[str], list[int]]:
    """Return captions of every relation in both orders, and of each 1 if it is right, 0 if wrong, -1 if in doubt."""
    captions, verdicts = [], []
    named = rng.random() < 0.4  # with their colours
    for first, second in (scene.objects, scene.objects[::-1]):
        needs = [{"class": o.shape, "count": 1} | ({"color": o.colour} if named else {}) for o in (second, first)]
        dx, dy = first.x - second.x, first.y - second.y
        for relation in RELATIONS:
            captions.append(phrase([needs[0], needs[1] | {"position": [relation, 0]}], rng))
            found = holds(way_along(relation, dx, dy), (dx**2 + dy**2) ** 0.5)
            verdicts.append(-1 if found is None else int(found))
    return captions, verdicts
