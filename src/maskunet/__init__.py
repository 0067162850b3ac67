"""Masks that switch off the parameters of a diffusion model that hurt, by timestep and by sample.

Two verbs: `attach` a masker to a pipeline, `detach` it. See the README for the main job.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .exports import exports

__version__ = "0.1.0"

#: Public names by the module that holds them; each is imported when it is first used, so `import maskunet` is quick.
_PUBLIC = {
    "attach": "attachment",
    "detach": "attachment",
    "disabled": "attachment",
    "record": "attachment",
    "load": "checkpoint",
    "HeldMasks": "maskers",
    "LowRankConfig": "maskers",
    "LowRankMasker": "maskers",
    "MaskConfig": "maskers",
    "MaskGenerator": "maskers",
    "MaskTable": "maskers",
    "FixedMasks": "maskers",
    "RandomMasks": "maskers",
    "Masker": "maskers",
    "MaskSchedule": "maskers",
    "search": "searching",
    "SearchConfig": "searching",
    "SearchResult": "searching",
    "syngen": "guidance",
    "train": "training",
    "TrainConfig": "training",
    "MaskUNetError": "errors",
    "TargetError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "RewardError": "errors",
}
_MODULES = ("relaxation", "operators", "maskers", "targets", "zoo", "metrics", "shapes", "rewards")

__all__ = ["__version__", *_PUBLIC, *_MODULES]


_public = exports(__name__, _PUBLIC)


def __getattr__(name: str) -> Any:
    return importlib.import_module(f".{name}", __name__) if name in _MODULES else _public(name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from . import maskers, metrics, operators, relaxation, rewards, shapes, targets, zoo
    from .attaching.attachment import attach, detach, disabled, record
    from .checkpoint import load
    from .errors import CheckpointError, DataError, MaskUNetError, RewardError, TargetError
    from .maskers import (
        FixedMasks,
        HeldMasks,
        LowRankConfig,
        LowRankMasker,
        MaskConfig,
        Masker,
        MaskGenerator,
        MaskSchedule,
        MaskTable,
        RandomMasks,
    )
    from .searching import SearchConfig, SearchResult, search
    from .syngen import syngen
    from .training import TrainConfig, train
