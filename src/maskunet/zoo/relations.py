"""What the matcher learns words of relation from: pictures of two shapes, and all that may be said of their places.

Of a scene with two shapes, one of each, every relation is put into words in both orders; each caption is right, wrong, or
in doubt by the centres of the two. Nothing has to be drawn for a wrong one, and no caption names a pair that its picture
does not show, so none leaves the training split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ..shapes.scenes import Scene, phrase
from ..shapes.vocabulary import RELATIONS, way_along
from .denoiser import tokenize
from .tokenizer import MAX_LENGTH

#: Of the way between two centres along a direction, as a share of the whole way: from here on a relation holds.
_HOLDS = 0.75
#: Up to here it does not; in between it is in doubt.
_FAILS = 0.4
#: Relations in both orders.
CAPTIONS = 2 * len(RELATIONS)


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
        self._row = torch.full((len(scenes),), -1)
        captions: list[str] = []
        verdicts: list[list[int]] = []
        for n, scene in enumerate(scenes):
            if len(scene.objects) != 2 or scene.objects[0].shape == scene.objects[1].shape:
                continue
            said, found = _described(scene, random.Random(f"relations/{seed}/{n}"))
            self._row[n] = len(verdicts)
            captions += said
            verdicts.append(found)
        ids = tokenize(tokenizer, captions) if captions else torch.zeros(0, MAX_LENGTH, dtype=torch.long)
        self._ids = ids.view(len(verdicts), CAPTIONS, ids.shape[-1])
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
