"""Rewards by name: the built-in ones, and those that installed packages declare.

A package declares its own in its pyproject.toml,

    [project.entry-points."maskunet.rewards"]
    my-reward = "my_package.rewards:my_reward"

where the object is a function `(pictures, prompts) -> (B,)`, a subclass of `Reward`, or an instance of one.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import RewardError
from .base import FunctionReward, Reward, WeightedSum

logger = logging.getLogger(__name__)

GROUP = "maskunet.rewards"
#: Built-in rewards: module and class in this package, and what `from_pretrained` is told. The table, unlike entry points,
#: is right in an editable installation too, and keeps transformers unimported until a reward is loaded.
BUILT_IN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "image-reward": ("image_reward", "ImageReward", {}),
    "hpsv2": ("hpsv2", "HPSv2", {"version": "2.0"}),
    "hpsv2.1": ("hpsv2", "HPSv2", {"version": "2.1"}),
    "pick-score": ("similarity", "PickScore", {}),
    "clip-score": ("similarity", "ClipScore", {}),
    "aesthetic": ("aesthetic", "AestheticScore", {}),
}


def names() -> list[str]:
    """Return the names of all rewards that `load` knows."""
    return [*BUILT_IN, *sorted(_declared())]


def load(name: str, source: Any = None, **options: Any) -> Reward:
    """Load a reward by name.

    Args:
        name: one of `names()`.
        source: folder, file or hub id of its weights; its public place if None.
        options: passed on to `from_pretrained`: `dtype`, `device`, `preprocess`, ...; a declared reward is moved to
            `device` and `dtype` when it is made.

    Raises:
        RewardError: no such reward, or a declared one that cannot be imported or made.
        CheckpointError: its weights cannot be read.
    """
    arguments = () if source is None else (source,)
    if name in BUILT_IN:
        module, kind, defaults = BUILT_IN[name]
        found = getattr(importlib.import_module(f".{module}", __package__), kind)
        reward: Reward = found.from_pretrained(*arguments, **(defaults | options))
        return reward
    declared = _declared()
    if name not in declared:
        raise RewardError(
            f"expected a reward among {', '.join(names())}, got {name!r}; a package adds its own by the entry-point group "
            f"{GROUP!r}"
        )
    return _made(declared[name], arguments, options)


def parse_reward(text: str | Sequence[str], **options: Any) -> Reward:
    """Load a weighted sum of rewards from its description.

    Args:
        text: `name`, `name:weight`, `name=source` or `name=source:weight`; several in a sequence or between commas, as
            in "image-reward,hpsv2:5".
        options: passed on to each.

    Raises:
        RewardError: nothing described, an unknown name, or a weight that is no number.
    """
    parts = [part.strip() for item in ([text] if isinstance(text, str) else text) for part in item.split(",")]
    parts = [part for part in parts if part]
    if not parts:
        raise RewardError(f"expected rewards like 'image-reward' or 'hpsv2:5', got {text!r}")
    terms = []
    for part in parts:
        described, weight = _weighed(part)
        name, _, source = described.partition("=")
        terms.append((weight, load(name.strip(), source.strip() or None, **options)))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)


def _weighed(part: str) -> tuple[str, float]:
    described, colon, last = part.rpartition(":")
    if not colon:
        return part, 1.0
    try:
        weight = float(last)
    except ValueError:
        weight = math.nan
    if math.isfinite(weight):
        return described, weight
    if "=" in described:  # a colon of the source's own
        return part, 1.0
    raise RewardError(f"expected a weight after the colon, as in 'hpsv2:5', got {part!r}")


def _declared() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN or entry.name in found:
            logger.warning("reward %r of %s is not used, the name is taken", entry.name, entry.value)
        else:
            found[entry.name] = entry
    return found


def _made(entry: EntryPoint, arguments: tuple[Any, ...], options: dict[str, Any]) -> Reward:
    try:
        found = entry.load()
    except Exception as error:  # whatever the package does on import
        raise RewardError(
            f"expected to import reward {entry.name!r} from {entry.value}, could not: {error}"
        ) from error
    where = {key: options[key] for key in ("device", "dtype") if key in options}
    options = {key: value for key, value in options.items() if key not in where}
    try:
        if isinstance(found, type) and issubclass(found, Reward):
            reward: Reward = getattr(found, "from_pretrained", found)(*arguments, **options)
        elif isinstance(found, Reward) or callable(found):
            if arguments or options:
                given = [*("source" for _ in arguments), *options]
                raise TypeError(f"it is made already and takes no {', '.join(given)}")
            reward = found if isinstance(found, Reward) else FunctionReward(found, entry.name)
        else:
            raise TypeError(f"it is a {type(found).__name__}")
    except TypeError as error:
        raise RewardError(
            f"expected {entry.value} to be a function (pictures, prompts), a Reward or a subclass of it, for reward "
            f"{entry.name!r}: {error}"
        ) from error
    reward.name = reward.name or entry.name
    return reward.to(**where)
