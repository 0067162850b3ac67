"""Build a masker from its config, or load one from its files; both need every class of masker."""

from __future__ import annotations

from typing import Any

from .. import checkpoint
from ..errors import SettingError
from .composed import ComposedMasker
from .conditional import ConditionalMasker
from .config import TrainableConfig
from .fixed import FixedMasks
from .generator import MaskGenerator
from .low_rank import LowRankMasker
from .random import RandomMasks
from .schedule import MaskSchedule
from .table import MaskTable

#: The maskers of the library. Each registers itself for `load` when its module is imported, as one of a user's does.
MASKERS = (LowRankMasker, MaskGenerator, MaskTable, FixedMasks, RandomMasks, MaskSchedule, ComposedMasker)

load = checkpoint.load


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
