"""Maskers: what decides, at every step and for every sample, which weights of which layers are kept."""

from __future__ import annotations

from typing import Any

from ..checkpoint import load
from ..errors import SettingError
from .base import BlockInput, Draw, LayerMask, Masker
from .conditional import ConditionalMasker
from .fixed import FixedMasks
from .generator import MaskGenerator, MaskGeneratorConfig
from .low_rank import LowRankMasker, LowRankMaskerConfig
from .random import RandomMasks
from .schedule import MaskSchedule
from .table import MaskTable

#: Settings of a masker that is trained.
TrainableConfig = MaskGeneratorConfig | LowRankMaskerConfig


def build_masker(model: Any, config: TrainableConfig, *, seed: int | None = None) -> ConditionalMasker:
    """Build the fresh masker that a config describes.

    Args:
        model: the U-Net or its pipeline.
        config: a `LowRankMaskerConfig` or a `MaskGeneratorConfig`.
        seed: seed of the random start; None draws from PyTorch's global generator.

    Raises:
        TargetError: the targets match nothing, or something that cannot be masked.
        SettingError: another kind of config.
    """
    for masker_class in (LowRankMasker, MaskGenerator):
        if isinstance(config, masker_class.config_class):
            return masker_class.for_unet(model, config, seed=seed)
    raise SettingError(f"expected a LowRankMaskerConfig or a MaskGeneratorConfig, got {type(config).__name__}")


__all__ = [
    "BlockInput",
    "ConditionalMasker",
    "Draw",
    "FixedMasks",
    "LayerMask",
    "LowRankMaskerConfig",
    "LowRankMasker",
    "MaskGeneratorConfig",
    "MaskGenerator",
    "MaskSchedule",
    "MaskTable",
    "Masker",
    "RandomMasks",
    "TrainableConfig",
    "build_masker",
    "load",
]
