"""Scenes of the shapes world: what is in a picture, where, and the caption that says so.

A scene is drawn at random from an index and a seed alone, so that picture `i` of a split is the same on every
machine. Distances are in pixels of the 64 by 64 picture; angles in degrees; the y axis points down.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .vocabulary import (
    COLOURS,
    COUNT_WORDS,
    RELATIONS,
    SHAPES,
    TASKS,
    Split,
    colour_split,
    count_split,
    pair_split,
    plural,
    way_along,
)

SIZE = 64
#: Radius range in pixels by number of objects.
RADII = {1: (11.0, 19.0), 2: (10.0, 14.0), 3: (8.5, 11.5), 4: (8.0, 10.5)}
_WORDINGS = ("{}", "{}", "a picture of {}", "{} on a plain background")


@dataclass(frozen=True)
class Shape:
    """One object: its names, centre, radius, rotation, and how its colour departs from the colour's own hue."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0
    hue_shift: float = 0.0
    saturation: float = 0.85
    value: float = 0.9


@dataclass(frozen=True)
class Scene:
    """A picture's content, its caption, and the requirement that a judge checks, in GenEval's keys."""

    objects: tuple[Shape, ...]
    caption: str
    task: str
    include: tuple[dict[str, Any], ...]
    seed: int = 0
    exclude: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True)
class Prompt:
    """A caption to generate from and the requirement that its picture must meet, in GenEval's keys."""

    prompt: str
    task: str
    include: tuple[dict[str, Any], ...]
    exclude: tuple[dict[str, Any], ...] = ()

    def metadata(self) -> dict[str, Any]:
        """Return the entry as a line of GenEval's `evaluation_metadata.jsonl`."""
        entry: dict[str, Any] = {"tag": self.task, "include": [dict(i) for i in self.include], "prompt": self.prompt}
        if self.exclude:
            entry["exclude"] = [dict(e) for e in self.exclude]
        return entry


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _pick_colour(rng: random.Random, shape: str, split: Split, other: str | None = None) -> str:
    names = [c for c in COLOURS if colour_split(c, shape) == split and c != other]
    # A split may hold a single colour for this shape; where that one is taken, fall back on a training colour.
    return rng.choice(names or [c for c in COLOURS if colour_split(c, shape) == "train" and c != other])


def _pick_pair(rng: random.Random, split: Split) -> tuple[str, str]:
    first = rng.choice(SHAPES)
    return first, rng.choice([s for s in SHAPES if s != first and pair_split(first, s) == split])


def _request(rng: random.Random, task: str, split: Split, *, plain: bool) -> tuple[str, list[dict[str, Any]]]:
    """Return a caption without its wording, and what it asks for (a list of GenEval requirements)."""
    if task == "single_object":
        needs: list[dict[str, Any]] = [{"class": rng.choice(SHAPES), "count": 1}]
        return _words(needs), needs
    if task == "colors":
        shape = rng.choice(SHAPES)
        colour = _pick_colour(rng, shape, split)
        needs = [{"class": shape, "count": 1, "color": colour}]
        return _words(needs), needs
    if task == "counting":
        pairs = [(n, s) for n in (2, 3, 4) for s in SHAPES if count_split(n, s) == split]
        count, shape = rng.choice(pairs)
        need: dict[str, Any] = {"class": shape, "count": count}
        if not plain and rng.random() < 0.4:
            need["color"] = _pick_colour(rng, shape, "train")
        return _words([need]), [need]
    first, second = _pick_pair(rng, split)
    needs = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    coloured = task == "color_attr" or (not plain and task == "position" and rng.random() < 0.4)
    if coloured:
        for i, other in ((0, None), (1, 0)):
            taken = None if other is None else needs[other]["color"]
            needs[i]["color"] = _pick_colour(rng, needs[i]["class"], "train", taken)
    if task == "position":
        relation = rng.choice(RELATIONS)
        loose = not plain and relation.endswith("of") and rng.random() < 0.3
        # GenEval's scorer matches requirements in order, so the object referred to comes first.
        needs = [needs[1], needs[0] | {"position": [relation, 0]}]
        return _words(needs, loose=loose), needs
    return _words(needs), needs


def _words(needs: Sequence[Mapping[str, Any]], *, loose: bool = False) -> str:
    """Return a caption without its wording; `loose` says "to the left of" instead of "left of"."""
    names = [f"{n['color']} {n['class']}" if "color" in n else n["class"] for n in needs]
    if len(needs) == 1:
        count = needs[0]["count"]
        return _article(names[0]) if count == 1 else f"{COUNT_WORDS[count]} {plural(names[0])}"
    if "position" in needs[1]:
        relation = needs[1]["position"][0]
        return f"{_article(names[1])} {'to the ' if loose else ''}{relation} {_article(names[0])}"
    return f"{_article(names[0])} and {_article(names[1])}"


def requested(needs: Sequence[Mapping[str, Any]], shape: str) -> Mapping[str, Any]:
    """Return what is asked for of a shape."""
    return next(need for need in needs if need["class"] == shape)


def phrase(needs: Sequence[Mapping[str, Any]], rng: random.Random) -> str:
    """Return a caption for what is asked for, in one of the training captions' wordings."""
    loose = "position" in needs[-1] and needs[-1]["position"][0].endswith("of") and rng.random() < 0.3
    return rng.choice(_WORDINGS).format(_words(needs, loose=loose))


def _place(rng: random.Random, count: int, relation: str | None) -> list[tuple[float, float, float]]:
    """Return centres and radii of `count` objects that neither touch each other nor the border.

    `relation` is where the second object lies, seen from the first.
    """
    low, high = RADII[count]
    while True:
        radii = [rng.uniform(low, high) for _ in range(count)]
        centres = [(rng.uniform(r + 2, SIZE - r - 2), rng.uniform(r + 2, SIZE - r - 2)) for r in radii]
        far = all(math.dist(centres[i], centres[j]) > radii[i] + radii[j] + 3 for i in range(count) for j in range(i))
        if not far:
            continue
        if relation is not None:
            dx, dy = centres[1][0] - centres[0][0], centres[1][1] - centres[0][1]
            ahead = way_along(relation, dx, dy)
            aside = abs(dy) if relation.endswith("of") else abs(dx)
            if ahead <= 1.5 * aside:
                continue
        return [(x, y, r) for (x, y), r in zip(centres, radii, strict=True)]


def arrange(needs: Sequence[Mapping[str, Any]], rng: random.Random) -> tuple[Shape, ...]:
    """Draw objects that meet what is asked for: their layout, and whatever the caption leaves open."""
    relation = next((n["position"][0] for n in needs if "position" in n), None)
    wanted = [n for n in needs for _ in range(n["count"])]
    shared: dict[str, str] = {}
    objects = []
    for need, (x, y, radius) in zip(wanted, _place(rng, len(wanted), relation), strict=True):
        colour = need.get("color")
        if colour is None:
            # Several objects of one kind share a colour half of the time, as counted objects usually do.
            colour = shared.get(need["class"]) or _pick_colour(rng, need["class"], "train")
            if need["count"] > 1 and rng.random() < 0.75:
                shared[need["class"]] = colour
        objects.append(
            Shape(
                need["class"],
                colour,
                x,
                y,
                radius,
                rotation=rng.uniform(-14, 14),
                hue_shift=rng.uniform(-4, 4),
                saturation=rng.uniform(0.75, 0.95),
                value=rng.uniform(0.78, 0.98),
            )
        )
    rng.shuffle(objects)
    return tuple(objects)


#: Share of each task among training scenes: harder tasks are shown more often.
TRAINING_SHARES = {
    "single_object": 1,
    "two_object": 2,
    "counting": 2,
    "colors": 2,
    "position": 3,
    "color_attr": 3,
}


def training_scene(index: int, seed: int = 0) -> Scene:
    """Return training scene number `index`: any task, plain or looser wording, training combinations only."""
    rng = random.Random(f"shapes/train/{seed}/{index}")
    task = rng.choices(list(TRAINING_SHARES), list(TRAINING_SHARES.values()))[0]
    words, needs = _request(rng, task, "train", plain=False)
    return Scene(
        arrange(needs, rng), rng.choice(_WORDINGS).format(words), task, tuple(needs), seed=rng.getrandbits(48)
    )


def held_out_prompts(count: int, split: Split = "test", seed: int = 0) -> list[Prompt]:
    """Return `count` prompts spread evenly over the six tasks, from the combinations of `split`.

    The tasks alternate, so that any prefix is balanced. Combinations of "val" and "test" were never drawn in
    training, except for `single_object`, which has only eight ("a circle"). Prompts can repeat where a task holds
    few combinations; each repetition is generated from its own noise.
    """
    rng = random.Random(f"shapes/{split}/{seed}")
    prompts = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        words, needs = _request(rng, task, split, plain=True)
        exclude = tuple({"class": n["class"], "count": n["count"] + 1} for n in needs) if task == "counting" else ()
        prompts.append(Prompt(words, task, tuple(needs), exclude))
    return prompts


def held_out_scenes(count: int, split: Split = "test", seed: int = 0) -> list[Scene]:
    """Return the scenes that `held_out_prompts` ask for, drawn correctly: the judge's exam and the FID reference."""
    rng = random.Random(f"shapes/{split}/scenes/{seed}")
    return [
        Scene(arrange(p.include, rng), p.prompt, p.task, p.include, rng.getrandbits(48), p.exclude)
        for p in held_out_prompts(count, split, seed)
    ]
