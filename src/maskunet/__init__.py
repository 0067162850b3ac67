"""Masks that switch off the parameters of a diffusion model that hurt, by timestep and by sample.

Two verbs: `attach` a masker to a pipeline, `detach` it. See the README for the main job.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .exports import exports
from .version import __version__

#: Public names by the module that holds them; each is imported when it is first used, so `import maskunet` is quick.
_PUBLIC = {
    "attach": "attaching",
    "detach": "attaching",
    "disabled": "attaching",
    "record": "attaching",
    "merge": "merging",
    "unmerge": "merging",
    "load": "maskers",
    "train": "training",
    "search": "searching",
    "evaluate": "evaluation",
    "LowRankMasker": "maskers",
    "LowRankMaskerConfig": "maskers",
    "MaskGenerator": "maskers",
    "MaskGeneratorConfig": "maskers",
    "TrainConfig": "training",
    "SearchConfig": "searching",
    "MaskUNetError": "errors",
}
_MODULES = ("maskers", "rewards", "data", "zoo", "sampling", "evaluation", "analysis")

__all__ = ["__version__", *_PUBLIC, *_MODULES]


_public = exports(__name__, _PUBLIC)


def __getattr__(name: str) -> Any:
    return importlib.import_module(f".{name}", __name__) if name in _MODULES else _public(name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from . import analysis, data, evaluation, maskers, rewards, sampling, zoo
    from .attaching import attach, detach, disabled, record
    from .errors import MaskUNetError
    from .evaluation import evaluate
    from .maskers import LowRankMasker, LowRankMaskerConfig, MaskGenerator, MaskGeneratorConfig, load
    from .merging import merge, unmerge
    from .searching import SearchConfig, search
    from .training import TrainConfig, train
