"""Differentiable rewards of pictures: one number a picture, higher is better.

import maskunet as mu

reward = mu.rewards.load("image-reward") + 5 * mu.rewards.load("hpsv2")
reward(pictures, prompts)       # pictures (B, 3, H, W) in [0, 1]; (B,)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

#: Public names by the module that holds them; transformers is imported when a network's reward is first used.
_PUBLIC = {
    "Reward": "base",
    "FunctionReward": "base",
    "WeightedSum": "base",
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
    from .registry import load, names, parse_reward
    from .similarity import ClipScore, PickScore
