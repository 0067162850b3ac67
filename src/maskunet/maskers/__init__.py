"""Maskers, which decide at every step and for every sample which weights are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

# Settings are read by the command line before torch is imported.
_PUBLIC = {
    "BlockInput": "layer_mask",
    "ComposedMask": "composed",
    "ComposedMasker": "composed",
    "ConditionalMasker": "conditional",
    "Draw": "layer_mask",
    "FixedMasks": "fixed",
    "LayerMask": "layer_mask",
    "LowRankMasker": "low_rank",
    "LowRankMaskerConfig": "config",
    "MaskGenerator": "generator",
    "MaskGeneratorConfig": "config",
    "MaskSchedule": "schedule",
    "MaskTable": "table",
    "Masker": "base",
    "RandomMasks": "random",
    "TrainableConfig": "config",
    "build_masker": "building",
    "load": "building",
    "parts_of": "composed",
}

__all__ = [*_PUBLIC]

__getattr__ = exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .base import Masker
    from .building import build_masker, load
    from .composed import ComposedMask, ComposedMasker, parts_of
    from .conditional import ConditionalMasker
    from .config import LowRankMaskerConfig, MaskGeneratorConfig, TrainableConfig
    from .fixed import FixedMasks
    from .generator import MaskGenerator
    from .layer_mask import BlockInput, Draw, LayerMask
    from .low_rank import LowRankMasker
    from .random import RandomMasks
    from .schedule import MaskSchedule
    from .table import MaskTable
