"""Scenes of the shapes world: the objects of an image, its caption, and the requirements that the caption states.

A random scene depends on an index and a seed only, so image `i` of a split is the same on every machine.

Requirements are dictionaries with GenEval's keys: {"class": shape, "count": n}, with "color" if the caption names one, and
with "position": [relation, i] if the object lies in that relation to the object of requirement i.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .layout import Shape, arrange, pick_colour
from .vocabulary import COUNT_WORDS, RELATIONS, SHAPES, TASKS, Split, count_split, pair_split, plural

_TEMPLATES = ("{}", "{}", "a picture of {}", "{} on a plain background")


@dataclass(frozen=True)
class Scene:
    """The content of an image, its caption, and the requirements that a judge checks.

    Args:
        objects: all objects.
        caption: caption of the image.
        task: one of `TASKS`.
        include: requirements that the image meets.
        seed: seed of the drawing's ground and noise.
        exclude: requirements that it must not meet.
    """

    objects: tuple[Shape, ...]
    caption: str
    task: str
    include: tuple[dict[str, Any], ...]
    seed: int = 0
    exclude: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True)
class Prompt:
    """A caption to generate from, and the requirements on its image.

    Args:
        prompt: the caption.
        task: one of `TASKS`.
        include: requirements that the image must meet.
        exclude: requirements that it must not meet.
    """

    prompt: str
    task: str
    include: tuple[dict[str, Any], ...]
    exclude: tuple[dict[str, Any], ...] = ()

    def metadata(self) -> dict[str, Any]:
        """Return the prompt as an entry of GenEval's `evaluation_metadata.jsonl`."""
        entry: dict[str, Any] = {"tag": self.task, "include": [dict(i) for i in self.include], "prompt": self.prompt}
        if self.exclude:
            entry["exclude"] = [dict(e) for e in self.exclude]
        return entry


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _pick_pair(rng: random.Random, split: Split) -> tuple[str, str]:
    first = rng.choice(SHAPES)
    return first, rng.choice([s for s in SHAPES if s != first and pair_split(first, s) == split])


def _random_requirements(
    rng: random.Random, task: str, split: Split, *, plain: bool
) -> tuple[str, list[dict[str, Any]]]:
    """Return a caption without its template, and its requirements; `plain` leaves out optional words."""
    if task == "single_object":
        requirements: list[dict[str, Any]] = [{"class": rng.choice(SHAPES), "count": 1}]
        return _phrase(requirements), requirements
    if task == "colors":
        shape = rng.choice(SHAPES)
        colour = pick_colour(rng, shape, split)
        requirements = [{"class": shape, "count": 1, "color": colour}]
        return _phrase(requirements), requirements
    if task == "counting":
        options = [(n, s) for n in (2, 3, 4) for s in SHAPES if count_split(n, s) == split]
        count, shape = rng.choice(options)
        requirement: dict[str, Any] = {"class": shape, "count": count}
        if not plain and rng.random() < 0.4:
            requirement["color"] = pick_colour(rng, shape, "train")
        return _phrase([requirement]), [requirement]
    first, second = _pick_pair(rng, split)
    requirements = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    has_colours = task == "color_attr" or (not plain and task == "position" and rng.random() < 0.4)
    if has_colours:
        requirements[0]["color"] = pick_colour(rng, requirements[0]["class"], "train")
        requirements[1]["color"] = pick_colour(rng, requirements[1]["class"], "train", requirements[0]["color"])
    if task == "position":
        relation = rng.choice(RELATIONS)
        is_loose = not plain and relation.endswith("of") and rng.random() < 0.3
        # GenEval's scorer matches requirements in order, so the reference object comes first.
        requirements = [requirements[1], requirements[0] | {"position": [relation, 0]}]
        return _phrase(requirements, is_loose=is_loose), requirements
    return _phrase(requirements), requirements


def _phrase(requirements: Sequence[Mapping[str, Any]], *, is_loose: bool = False) -> str:
    """Return a caption without its template; a loose one has "to the left of" instead of "left of"."""
    names = [f"{n['color']} {n['class']}" if "color" in n else n["class"] for n in requirements]
    if len(requirements) == 1:
        count = requirements[0]["count"]
        return _article(names[0]) if count == 1 else f"{COUNT_WORDS[count]} {plural(names[0])}"
    if "position" in requirements[1]:
        relation = requirements[1]["position"][0]
        return f"{_article(names[1])} {'to the ' if is_loose else ''}{relation} {_article(names[0])}"
    return f"{_article(names[0])} and {_article(names[1])}"


def requirement_on(requirements: Sequence[Mapping[str, Any]], shape: str) -> Mapping[str, Any]:
    """Return the requirement on a shape.

    Args:
        requirements: the requirements.
        shape: a shape that one of them names.
    """
    return next(requirement for requirement in requirements if requirement["class"] == shape)


def write_caption(requirements: Sequence[Mapping[str, Any]], rng: random.Random) -> str:
    """Return a caption for requirements, in a random template of the training captions.

    Args:
        requirements: the requirements.
        rng: draws the template.
    """
    is_loose = "position" in requirements[-1] and requirements[-1]["position"][0].endswith("of") and rng.random() < 0.3
    return rng.choice(_TEMPLATES).format(_phrase(requirements, is_loose=is_loose))


#: Relative share of each task among training scenes: harder tasks are more frequent.
TRAINING_SHARES = {
    "single_object": 1,
    "two_object": 2,
    "counting": 2,
    "colors": 2,
    "position": 3,
    "color_attr": 3,
}


def training_scene(index: int, seed: int = 0) -> Scene:
    """Return a training scene: any task, any template, training combinations only.

    Args:
        index: number of the scene, from 0.
        seed: seed of the whole sequence.
    """
    rng = random.Random(f"shapes/train/{seed}/{index}")
    task = rng.choices(list(TRAINING_SHARES), list(TRAINING_SHARES.values()))[0]
    words, requirements = _random_requirements(rng, task, "train", plain=False)
    return Scene(
        arrange(requirements, rng),
        rng.choice(_TEMPLATES).format(words),
        task,
        tuple(requirements),
        seed=rng.getrandbits(48),
    )


def held_out_prompts(count: int, split: Split = "test", seed: int = 0) -> list[Prompt]:
    """Return prompts spread evenly over the six tasks, from the combinations of a split.

    The tasks alternate, so any prefix is balanced. Combinations of "val" and "test" were never drawn in training, except
    for `single_object`, which has only eight ("a circle"). Prompts can repeat if a task has few combinations; each
    repetition is generated from its own noise.

    Args:
        count: number of prompts.
        split: "val" or "test".
        seed: seed of the whole sequence.
    """
    rng = random.Random(f"shapes/{split}/{seed}")
    prompts = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        words, requirements = _random_requirements(rng, task, split, plain=True)
        exclude = (
            tuple({"class": n["class"], "count": n["count"] + 1} for n in requirements) if task == "counting" else ()
        )
        prompts.append(Prompt(words, task, tuple(requirements), exclude))
    return prompts


def held_out_scenes(count: int, split: Split = "test", seed: int = 0) -> list[Scene]:
    """Return scenes that show the prompts of `held_out_prompts`: they test the judge, and are the reference of the FID.

    Args:
        count: number of scenes.
        split: "val" or "test".
        seed: seed of the whole sequence.
    """
    rng = random.Random(f"shapes/{split}/scenes/{seed}")
    return [
        Scene(arrange(p.include, rng), p.prompt, p.task, p.include, rng.getrandbits(48), p.exclude)
        for p in held_out_prompts(count, split, seed)
    ]
