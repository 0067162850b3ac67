"""Models, maskers and rewards that the page offers: named on the command line, loaded once, shared by everybody.

A page never says where to read from. It names one of what is offered here, so nobody reaches other files through it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import pipelines, zoo
from ..checkpoint import load
from ..errors import DataError
from ..maskers import Masker
from ..rewards import Reward, parse_reward
from ..zoo import defaults
from .results_folder import Folder

BUNDLED = "shapes"
_BUNDLED_MASKER = "shapes-masker"
#: Maskers that are kept in memory; the one that was used longest ago makes room.
_MOST_MASKERS = 4


class Models:
    """What the page offers.

    Args:
        models: pipelines, as `load_pipeline` takes them; at least one.
        maskers: folders or hub ids; the bundled one is offered with the bundled model.
        rewards: descriptions as `parse_reward` takes them, for all models; the bundled model has one of its own.
        folder: where masks are kept that searches found; they are offered too.
        device: where to compute; the first accelerator if None.
        dtype: precision; the device's usual one if None.
        scheduler: a name of `pipelines.SCHEDULERS`; each model's own if None.

    Raises:
        DataError: no model, no such device or dtype, or an unknown scheduler.
    """

    def __init__(
        self,
        models: Sequence[str],
        maskers: Sequence[str],
        rewards: Sequence[str],
        folder: Folder,
        *,
        device: str | None = None,
        dtype: str | None = None,
        scheduler: str | None = None,
    ) -> None:
        if not models:
            raise DataError("expected at least one model, got none")
        self._models = _named(models)
        bundled = [_BUNDLED_MASKER] if BUNDLED in models and not {BUNDLED, _BUNDLED_MASKER} & set(maskers) else []
        self._maskers = _named([_BUNDLED_MASKER if m == BUNDLED else m for m in [*maskers, *bundled]])
        self._rewards, self._folder, self._scheduler = list(rewards), folder, scheduler
        self._device = pipelines.choose_device(device)
        self._dtype = pipelines.choose_dtype(dtype, self._device)
        self._loading = threading.Lock()
        self._pipes: dict[str, Any] = {}
        self._loaded: dict[tuple[str, str], Masker] = {}
        self._scorers: dict[str, Reward | None] = {}

    @property
    def names(self) -> list[str]:
        """Names of the models, the first one first."""
        return list(self._models)

    def masker_names(self) -> list[str]:
        """Names of the maskers: those of the command line, then the masks that were kept, as "found/<name>"."""
        return [*self._maskers, *(f"found/{name}" for name in self._folder.masks())]

    def is_bundled(self, model: str) -> bool:
        """Whether a model draws the shapes world, which the judge knows."""
        return self._source(model) == BUNDLED

    def pipe(self, model: str) -> Any:
        """Return a model's pipeline, loaded on first use.

        Raises:
            DataError: not offered.
            CheckpointError: it cannot be read.
        """
        source = self._source(model)
        with self._loading:
            if model not in self._pipes:
                pipelines.silence_loading()
                pipe = pipelines.load_pipeline(
                    source, dtype=self._dtype, device=self._device, scheduler=self._scheduler
                )
                pipe.set_progress_bar_config(disable=True)
                self._pipes[model] = pipe
            return self._pipes[model]

    def masker(self, name: str, model: str) -> Masker:
        """Return a masker for a model.

        Raises:
            DataError: not offered.
            CheckpointError: it cannot be read.
            TargetError: made for another model.
        """
        kept = {f"found/{found}": path for found, path in self._folder.masks().items()}
        source = self._maskers.get(name) or kept.get(name)
        if source is None:
            raise DataError(f"expected a masker among {', '.join(self.masker_names()) or 'none'}, got {name!r}")
        pipe = self.pipe(model)
        with self._loading:
            masker = self._loaded.pop((name, model), None)
            if masker is None:
                masker = load(zoo.path(_BUNDLED_MASKER) if source == _BUNDLED_MASKER else source, pipe)
            self._loaded[name, model] = masker  # the latest last
            while len(self._loaded) > _MOST_MASKERS:
                self._loaded.pop(next(iter(self._loaded)))
            return masker

    def reward(self, model: str) -> Reward | None:
        """Return the reward of a model's pictures, or None where none was given.

        Raises:
            DataError: no such model.
            RewardError: an unknown reward.
            CheckpointError: its weights cannot be read.
        """
        described = self._rewards or ([defaults.REWARD] if self.is_bundled(model) else [])
        pipe = self.pipe(model)
        with self._loading:
            if model not in self._scorers:
                found = parse_reward(described).to(pipe.unet.device, pipe.unet.dtype) if described else None
                self._scorers[model] = found
            return self._scorers[model]

    def _source(self, model: str) -> str:
        if model not in self._models:
            raise DataError(f"expected a model among {', '.join(self._models)}, got {model!r}")
        return self._models[model]


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Sources by a short name: the last part of a path, with a number where two are alike."""
    named: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        short = Path(source).name or source
        name, number = short, 2
        while name in named:
            name, number = f"{short} ({number})", number + 1
        named[name] = source
    return named
