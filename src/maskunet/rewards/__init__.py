"""Differentiable rewards of images: one value per image, higher is better.

import maskunet as mu

reward = mu.rewards.load("image-reward") + 5 * mu.rewards.load("hpsv2")
values = reward(images, prompts)        # images (B, 3, H, W) in [0, 1]; values (B,)

`names()` lists the rewards that `load` finds. Your own is a function `(images, prompts) -> (B,)`, or a subclass of
`Reward`; `registry` says how a package publishes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

#: Public names by the module that holds them; transformers is imported with the first reward that needs it.
_PUBLIC = {
    "Reward": "base",
    "FunctionReward": "base",
    "WeightedSum": "base",
    "as_reward": "registry",
    "load": "registry",
    "names": "registry",
    "parse_reward": "registry",
    "Preprocess": "preprocess",
    "shared_crop": "preprocess",
    "ImageReward": "image_reward",
    "HPSv2": "hpsv2",
    "PickScore": "similarity",
    "ClipScore": "similarity",
    "AestheticScore": "aesthetic",
}

__all__ = [*_PUBLIC]


__getattr__ = exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .aesthetic import AestheticScore
    from .base import FunctionReward, Reward, WeightedSum
    from .hpsv2 import HPSv2
    from .image_reward import ImageReward
    from .preprocess import Preprocess, shared_crop
    from .registry import as_reward, load, names, parse_reward
    from .similarity import ClipScore, PickScore
