"""Training: masks, LoRA or all weights, from the diffusion loss or a reward, in one loop.

Names are imported when they are first used, so that the command line can show the settings without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

#: Public names by the module that holds them.
_PUBLIC = {
    "METHODS": "methods",
    "FullMethod": "full_method",
    "LoraMethod": "lora_method",
    "MaskLoraMethod": "methods",
    "MaskMethod": "mask_method",
    "Method": "base",
    "Run": "run",
    "TrainConfig": "config",
    "build_method": "methods",
    "open_dataset": "dataset",
    "train": "trainer",
}

__all__ = [
    "METHODS",
    "FullMethod",
    "LoraMethod",
    "MaskLoraMethod",
    "MaskMethod",
    "Method",
    "Run",
    "TrainConfig",
    "build_method",
    "open_dataset",
    "train",
]


__getattr__ = exports(__name__, _PUBLIC)


if TYPE_CHECKING:
    from .base import Method
    from .config import TrainConfig
    from .dataset import open_dataset
    from .full_method import FullMethod
    from .lora_method import LoraMethod
    from .mask_method import MaskMethod
    from .methods import METHODS, MaskLoraMethod, build_method
    from .run import Run
    from .trainer import train
