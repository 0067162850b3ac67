"""Rewards by name: the public ones, and those that installed packages declare (this package's bundled ones, too).

A package declares its own in its pyproject.toml,

    [project.entry-points."maskunet.rewards"]
    my-reward = "my_package.rewards:my_reward"

where the object is a function `(images, prompts) -> (B,)`, a subclass of `Reward`, or an instance of one.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import Tensor

from ..errors import MaskUNetError, RewardError, first_line
from ..moving import outside_inference_mode
from .base import FunctionReward, Reward, WeightedSum

logger = logging.getLogger(__name__)

GROUP = "maskunet.rewards"
#: Public rewards: module and class in this package, and options of `from_pretrained`. Their modules import transformers,
#: so they are imported by `load`.
BUILT_IN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "image-reward": ("image_reward", "ImageReward", {}),
    "hpsv2": ("hpsv2", "HPSv2", {"version": "2.0"}),
    "hpsv2.1": ("hpsv2", "HPSv2", {"version": "2.1"}),
    "pick-score": ("similarity", "PickScore", {}),
    "clip-score": ("similarity", "ClipScore", {}),
    "aesthetic": ("aesthetic", "AestheticScore", {}),
}


def names() -> list[str]:
    """Return the names of all rewards that `load` finds: the public ones, then the declared ones."""
    return [*BUILT_IN, *sorted(_declared())]


@outside_inference_mode()
def load(name: str, source: Any = None, **options: Any) -> Reward:
    """Load a reward by name.

    Args:
        name: one of `names()`.
        source: folder, file or hub id of its weights; the published weights if None.
        options: passed to `from_pretrained`, such as `dtype`, `device` or `preprocess`. Declared rewards are moved to
            `device` and `dtype` after they are built.

    Raises:
        RewardError: no such reward, or a declared one that cannot be imported or built.
        CheckpointError: its weights cannot be read.
    """
    arguments = () if source is None else (source,)
    if name in BUILT_IN:
        module, class_name, defaults = BUILT_IN[name]
        reward_class = getattr(importlib.import_module(f".{module}", __package__), class_name)
        reward: Reward = reward_class.from_pretrained(*arguments, **(defaults | options))
        return reward
    declared = _declared()
    if name not in declared:
        raise RewardError(
            f"expected a reward among {', '.join(names())}, got {name!r}; a package adds its own by the entry-point group "
            f"{GROUP!r}"
        )
    return _load_declared(declared[name], arguments, options)


def parse_reward(text: str | Sequence[str], **options: Any) -> Reward:
    """Load a weighted sum of rewards from its description.

    Args:
        text: `name`, `name:weight`, `name=source` or `name=source:weight`; several in a sequence or between commas, as
            in "image-reward,hpsv2:5". Weights are finite; 1 if missing.
        options: passed to `load` for each.

    Raises:
        RewardError: an empty description, an unknown name, or a weight that is not a finite number.
        CheckpointError: weights of a reward cannot be read.
    """
    parts = [part.strip() for item in ([text] if isinstance(text, str) else text) for part in item.split(",")]
    parts = [part for part in parts if part]
    if not parts:
        raise RewardError(f"expected rewards like 'image-reward' or 'hpsv2:5', got {text!r}")
    descriptions = [_split_weight(part) for part in parts]
    terms = []
    for description, weight in descriptions:
        name, _, source = description.partition("=")
        terms.append((weight, load(name.strip(), source.strip() or None, **options)))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)


def as_reward(reward: Reward | Callable[[Tensor, Sequence[str]], Tensor] | str, **options: Any) -> Reward:
    """Return an argument as a reward.

    Args:
        reward: a reward, a function `(images, prompts) -> (B,)`, or a description as `parse_reward` reads it.
        options: passed to `parse_reward` where `reward` is a description.

    Raises:
        RewardError: none of the three, or a description that cannot be read.
        CheckpointError: weights of a described reward cannot be read.
    """
    if isinstance(reward, Reward):
        return reward
    return parse_reward(reward, **options) if isinstance(reward, str) else FunctionReward(reward)


def _split_weight(part: str) -> tuple[str, float]:
    """Split `name:weight` or `name=source:weight`."""
    description, colon, text = part.rpartition(":")
    if not colon:
        return part, 1.0
    try:
        weight = float(text)
    except ValueError:
        if "=" in description:  # the colon belongs to the source
            return part, 1.0
        weight = math.nan
    if not math.isfinite(weight):
        raise RewardError(f"expected a finite weight after the colon, as in 'hpsv2:5', got {part!r}")
    return description, weight


def _declared() -> dict[str, EntryPoint]:
    declared: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN or entry.name in declared:
            logger.warning("reward %r of %s is not used, the name is taken", entry.name, entry.value)
        else:
            declared[entry.name] = entry
    return declared


def _load_declared(entry: EntryPoint, arguments: tuple[Any, ...], options: dict[str, Any]) -> Reward:
    try:
        target = entry.load()
    except Exception as error:  # a foreign package can raise anything on import
        raise RewardError(
            f"expected to import reward {entry.name!r} from {entry.value}, could not: {first_line(error)}"
        ) from error
    placement = {key: options[key] for key in ("device", "dtype") if key in options}
    options = {key: value for key, value in options.items() if key not in placement}
    if isinstance(target, type) and issubclass(target, Reward):
        try:
            reward: Reward = getattr(target, "from_pretrained", target)(*arguments, **options)
        except MaskUNetError:
            raise
        except Exception as error:  # nor does its constructor keep to our errors
            raise RewardError(
                f"expected to build reward {entry.name!r} from {entry.value}, could not: {first_line(error)}"
            ) from error
    elif not callable(target):
        raise RewardError(
            f"expected {entry.value} to be a function (images, prompts), a Reward or a subclass of it, for reward "
            f"{entry.name!r}, got {type(target).__name__}"
        )
    elif arguments or options:
        refused = ", ".join([*("source" for _ in arguments), *options])
        raise RewardError(f"expected no options for reward {entry.name!r}, {entry.value} takes no {refused}")
    else:
        reward = target if isinstance(target, Reward) else FunctionReward(target, entry.name)
    reward.name = reward.name or entry.name
    return reward.to(**placement)
