"""Maskers: what decides, at every step and for every sample, which weights of which layers are kept."""

from __future__ import annotations

from typing import Any

from .base import BlockInput, Draw, LayerMask, Masker
from .conditional import ConditionalMasker
from .fixed import FixedMasks
from .generator import MaskConfig, MaskGenerator
from .held import HeldMasks
from .low_rank import LowRankConfig, LowRankMasker
from .random import RandomMasks
from .schedule import MaskSchedule
from .table import MaskTable

#: Maskers by the name that their files carry.
MASKERS: dict[str, type[Masker]] = {
    cls.__name__: cls for cls in (LowRankMasker, MaskGenerator, MaskTable, FixedMasks, RandomMasks, MaskSchedule)
}

#: Settings of a masker that is trained.
TrainableConfig = MaskConfig | LowRankConfig


def build_masker(model: Any, config: TrainableConfig, *, seed: int | None = None) -> ConditionalMasker:
    """Build the fresh masker that a config describes.

    Args:
        model: the U-Net or its pipeline.
        config: settings of one of the generators in `MASKERS`.
        seed: seed of the random start; None draws from PyTorch's global generator.

    Raises:
        TargetError: the targets match nothing, or something that cannot be masked.
        ValueError: the settings are no generator's.
    """
    kinds = {kind.config_class: kind for kind in MASKERS.values() if issubclass(kind, ConditionalMasker)}
    for settings, kind in kinds.items():
        if isinstance(config, settings):
            return kind.for_unet(model, config, seed=seed)
    names = " or ".join(settings.__name__ for settings in kinds)
    raise ValueError(f"expected settings of a generator of masks, {names}, got {type(config).__name__}")


__all__ = [
    "MASKERS",
    "BlockInput",
    "ConditionalMasker",
    "Draw",
    "FixedMasks",
    "HeldMasks",
    "LayerMask",
    "LowRankConfig",
    "LowRankMasker",
    "MaskConfig",
    "MaskGenerator",
    "MaskSchedule",
    "MaskTable",
    "Masker",
    "RandomMasks",
    "TrainableConfig",
    "build_masker",
]
