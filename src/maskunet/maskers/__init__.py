"""Maskers, which decide at every step and for every sample which weights are kept."""

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

#: Settings of a trainable masker.
TrainableConfig = MaskGeneratorConfig | LowRankMaskerConfig


def build_masker(model: Any, config: TrainableConfig, *, seed: int | None = None) -> ConditionalMasker:
    """Build an untrained masker from a config.

    Args:
        model: the U-Net or its pipeline.
        config: a `LowRankMaskerConfig` or a `MaskGeneratorConfig`.
        seed: seed of the initial weights; None draws from PyTorch's global generator.

    Raises:
        TargetError: the targets match nothing, or something that cannot be masked.
        SettingError: the config is of another class.
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
    "LowRankMasker",
    "LowRankMaskerConfig",
    "MaskGenerator",
    "MaskGeneratorConfig",
    "MaskSchedule",
    "MaskTable",
    "Masker",
    "RandomMasks",
    "TrainableConfig",
    "build_masker",
    "load",
]
