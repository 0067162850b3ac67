"""Maskers: what decides, at every step and for every sample, which weights of which layers are kept."""

from .base import BlockInput, Draw, LayerMask, Masker
from .fixed import FixedMasks
from .generator import MaskConfig, MaskGenerator
from .random import RandomMasks
from .schedule import MaskSchedule
from .table import MaskTable

#: Maskers by the name that their files carry.
MASKERS: dict[str, type[Masker]] = {
    cls.__name__: cls for cls in (MaskGenerator, MaskTable, FixedMasks, RandomMasks, MaskSchedule)
}

__all__ = [
    "MASKERS",
    "BlockInput",
    "Draw",
    "FixedMasks",
    "LayerMask",
    "MaskConfig",
    "MaskGenerator",
    "MaskSchedule",
    "MaskTable",
    "Masker",
    "RandomMasks",
]
