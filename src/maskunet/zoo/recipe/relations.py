"""Captions for images of two different shapes: of their relations, and of their colours.

`RelationCaptions` describes such a scene by every relation in both orders; each caption is right, wrong or doubtful, by the
centres of the two objects. `ColourCaptions` pairs captions of the true colours with copies that have wrong ones: a matcher
that sees only captions of relations, whose colours are never wrong, forgets to read colours. Wrong captions need no images
of their own, and none has a pair outside the training split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ...shapes.scenes import Scene, write_caption
from ...shapes.vocabulary import COLOURS, RELATIONS, colour_split, distance_along
from .denoiser import tokenize
from .tokenizer import MAX_LENGTH

# Cosine between the offset of two centres and a relation's direction: from here on the relation holds,
_HOLDS = 0.75
# up to here it does not, and in between it is doubtful.
_FAILS = 0.4
#: Captions per scene: every relation in both orders.
CAPTIONS = 2 * len(RELATIONS)
#: Pairs of captions per scene that differ in colours only.
PAIRS = 6
_RIGHT, _WRONG, _DOUBTFUL = 1, 0, -1


def relation_holds(along: float, distance: float) -> bool | None:
    """Return whether a relation holds between two centres; None if it is doubtful.

    Args:
        along: offset of the one from the other in the relation's direction, in pixels; negative on the opposite side.
        distance: distance of the two, in pixels.
    """
    cosine = along / max(distance, 1e-6)
    return True if cosine >= _HOLDS else False if cosine <= _FAILS else None


def relation_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Return, for each token id, whether it names a relation: "left", "right", "above" or "below".

    Args:
        tokenizer: the tokenizer.
    """
    is_relation = torch.zeros(len(tokenizer), dtype=torch.bool)
    for relation in RELATIONS:
        is_relation[tokenizer(relation.split()[0], add_special_tokens=False)["input_ids"]] = True
    return is_relation


class RelationCaptions:
    """Captions of relations, for the scenes that have two different shapes.

    Args:
        scenes: all scenes, in the order of the indices.
        tokenizer: tokenizer of the captions.
        seed: seed of the wordings.
    """

    def __init__(self, scenes: Sequence[Scene], tokenizer: CLIPTokenizer, seed: int) -> None:
        verdicts: list[list[int]] = []

        def captions_of(number: int, scene: Scene) -> list[str]:
            captions, scene_verdicts = _relation_captions(scene, random.Random(f"relations/{seed}/{number}"))
            verdicts.append(scene_verdicts)
            return captions

        self._row, self._ids = _tokenize_captions(scenes, tokenizer, captions_of, CAPTIONS)
        self._verdicts = torch.tensor(verdicts).view(-1, CAPTIONS)

    def sample(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a right and a wrong caption for each image that has both.

        Args:
            index: indices of the images' scenes (B,).
            generator: draws the captions.

        Returns:
            Positions in `index` (2 M,), token ids (2 M, L), and whether each caption is right (2 M,): M right ones, then M
            wrong ones.
        """
        rows = self._row[index]
        images = (rows >= 0).nonzero().flatten()
        verdicts = self._verdicts[rows[images]]
        has_both = (verdicts == _RIGHT).any(1) & (verdicts == _WRONG).any(1)
        images, verdicts = images[has_both], verdicts[has_both]
        draws = torch.rand(2, *verdicts.shape, generator=generator)
        captions = torch.cat([(draws[k] * (verdicts == v)).argmax(1) for k, v in enumerate((_RIGHT, _WRONG))])
        images = images.repeat(2)
        is_right = torch.arange(len(images)) < len(images) // 2
        return images, self._ids[rows[images], captions], is_right


class ColourCaptions:
    """Captions of the colours of two objects, right and wrong, for the scenes that have two different shapes.

    Args:
        scenes: all scenes, in the order of the indices.
        tokenizer: tokenizer of the captions.
        seed: seed of the wordings and of the wrong colours.
    """

    def __init__(self, scenes: Sequence[Scene], tokenizer: CLIPTokenizer, seed: int) -> None:
        def captions_of(number: int, scene: Scene) -> list[str]:
            return _colour_captions(scene, random.Random(f"bindings/{seed}/{number}"))

        self._row, ids = _tokenize_captions(scenes, tokenizer, captions_of, 2 * PAIRS)
        self._ids = ids.unflatten(1, (PAIRS, 2))

    def sample(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a caption with the true colours, and its copy with wrong ones, for each image of two shapes.

        Args:
            index: indices of the images' scenes (B,).
            generator: draws the captions.

        Returns:
            Positions in `index` (2 M,), token ids (2 M, L), and whether each caption is right (2 M,): M right ones, then M
            wrong ones.
        """
        rows = self._row[index]
        images = (rows >= 0).nonzero().flatten()
        pair = torch.randint(PAIRS, (len(images),), generator=generator)
        ids = self._ids[rows[images], pair].transpose(0, 1).flatten(0, 1)
        return images.repeat(2), ids, torch.arange(len(ids)) < len(images)


def _tokenize_captions(
    scenes: Sequence[Scene], tokenizer: CLIPTokenizer, captions_of: Callable[[int, Scene], list[str]], count: int
) -> tuple[Tensor, Tensor]:
    """Return the row of each scene (N,), -1 without two shapes, and the rows' token ids (M, count, L)."""
    row, captions = torch.full((len(scenes),), -1), list[str]()
    for number, scene in enumerate(scenes):
        if _has_two_shapes(scene):
            row[number] = len(captions) // count
            captions += captions_of(number, scene)
    ids = tokenize(tokenizer, captions) if captions else torch.zeros(0, MAX_LENGTH, dtype=torch.long)
    return row, ids.view(-1, count, ids.shape[-1])


def _has_two_shapes(scene: Scene) -> bool:
    return len(scene.objects) == 2 and scene.objects[0].shape != scene.objects[1].shape


def _colour_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Return captions with the true colours, each followed by its copy with wrong ones: 2 * PAIRS."""
    captions = []
    for number in range(PAIRS):
        pair = scene.objects if number % 2 else scene.objects[::-1]
        requirements: list[dict[str, Any]] = [{"class": o.shape, "count": 1, "color": o.colour} for o in pair]
        dx, dy = pair[1].x - pair[0].x, pair[1].y - pair[0].y
        distance = (dx**2 + dy**2) ** 0.5
        relations = [r for r in RELATIONS if relation_holds(distance_along(r, dx, dy), distance)]
        if relations and number >= PAIRS // 2:
            requirements[1]["position"] = [rng.choice(relations), 0]
        captions += [write_caption(r, rng) for r in (requirements, _with_wrong_colours(requirements, rng))]
    return captions


def _with_wrong_colours(requirements: Sequence[Mapping[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Return two requirements with their colours swapped, if the split allows it, or with another one for one of them."""
    first, second = requirements
    swapped = [dict(first) | {"color": second["color"]}, dict(second) | {"color": first["color"]}]
    is_allowed = all(colour_split(r["color"], r["class"]) == "train" for r in swapped)
    if is_allowed and first["color"] != second["color"] and rng.random() < 0.7:
        return swapped
    wrong = [dict(requirement) for requirement in requirements]
    changed = rng.choice(wrong)
    others = [c for c in COLOURS if c != changed["color"] and colour_split(c, changed["class"]) == "train"]
    changed["color"] = rng.choice(others)
    return wrong


def _relation_captions(scene: Scene, rng: random.Random) -> tuple[list[str], list[int]]:
    """Return captions of every relation in both orders, and whether each is right, wrong or doubtful."""
    captions, verdicts = [], []
    names_colours = rng.random() < 0.4
    for subject, reference in (scene.objects, scene.objects[::-1]):
        requirements = [
            {"class": o.shape, "count": 1} | ({"color": o.colour} if names_colours else {})
            for o in (reference, subject)
        ]
        dx, dy = subject.x - reference.x, subject.y - reference.y
        for relation in RELATIONS:
            captions.append(write_caption([requirements[0], requirements[1] | {"position": [relation, 0]}], rng))
            holds = relation_holds(distance_along(relation, dx, dy), (dx**2 + dy**2) ** 0.5)
            verdicts.append(_DOUBTFUL if holds is None else _RIGHT if holds else _WRONG)
    return captions, verdicts
