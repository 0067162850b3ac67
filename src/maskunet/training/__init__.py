"""Training: masks, LoRA or all weights, learned from the diffusion loss in one loop.

Names are imported when they are first used: the settings alone, which the command line's help shows, need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

_NAMES = {
    "METHODS": "methods",
    "Method": "base",
    "Run": "trainer",
    "TrainConfig": "config",
    "TrainFull": "methods",
    "TrainLora": "methods",
    "TrainMasks": "methods",
    "TrainMasksWithLora": "methods",
    "build_method": "methods",
    "train": "trainer",
}

__all__ = [
    "METHODS",
    "Method",
    "Run",
    "TrainConfig",
    "TrainFull",
    "TrainLora",
    "TrainMasks",
    "TrainMasksWithLora",
    "build_method",
    "train",
]


__getattr__ = exports(__name__, _NAMES)


if TYPE_CHECKING:
    from .base import Method
    from .config import TrainConfig
    from .methods import METHODS, TrainFull, TrainLora, TrainMasks, TrainMasksWithLora, build_method
    from .trainer import Run, train
