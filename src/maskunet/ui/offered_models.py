"""Models, maskers and rewards that the page offers: named on the command line, loaded once, shared by all visitors.

The page passes names of what is offered here and never a path, so no other file can be reached through it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import pipelines
from ..errors import DataError
from ..maskers import Masker, load
from ..model_files import model_name
from ..rewards import Reward, parse_reward
from ..settings import GUIDANCE_SCALE
from ..zoo import defaults
from .results_folder import ResultsFolder

BUNDLED = "shapes"
_BUNDLED_MASKER = "shapes-masker"
#: How many maskers stay in memory; the least recently used one makes room.
_MAX_MASKERS = 4


class OfferedModels:
    """What the page offers.

    Args:
        models: pipelines, as `load_pipeline` takes them; at least one.
        maskers: folders or hub ids; the bundled one is offered with the bundled model.
        rewards: descriptions as `parse_reward` takes them, for all models; the bundled model has one of its own.
        folder: where searches' masks are saved; they are offered too.
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
        folder: ResultsFolder,
        *,
        device: str | None = None,
        dtype: str | None = None,
        scheduler: str | None = None,
    ) -> None:
        if not models:
            raise DataError("expected at least one model, got none")
        self._models = _short_names(models)
        names_bundled = bool({BUNDLED, _BUNDLED_MASKER} & set(maskers))
        bundled = [_BUNDLED_MASKER] if BUNDLED in map(model_name, models) and not names_bundled else []
        self._maskers = _short_names([_BUNDLED_MASKER if m == BUNDLED else m for m in [*maskers, *bundled]])
        self._rewards, self._folder, self._scheduler = list(rewards), folder, scheduler
        self._device = pipelines.choose_device(device)
        self._dtype = pipelines.choose_dtype(dtype, self._device)
        self._lock = threading.Lock()
        self._pipes: dict[str, Any] = {}
        self._loaded_maskers: dict[tuple[str, str], Masker] = {}
        self._loaded_rewards: dict[str, Reward | None] = {}

    @property
    def names(self) -> list[str]:
        """Names of the models, the first one first."""
        return list(self._models)

    def masker_names(self) -> list[str]:
        """Return the names of the maskers: those of the command line, then saved masks as "found/<name>"."""
        return [*self._maskers, *(f"found/{name}" for name in self._folder.masks())]

    def is_bundled(self, model: str) -> bool:
        """Return whether a model draws the shapes world, which the judge knows.

        Args:
            model: name of an offered model.
        """
        return model_name(self._source(model)) == BUNDLED

    def guidance_scale(self, model: str) -> float:
        """Return a model's default strength of classifier-free guidance.

        Args:
            model: name of an offered model.
        """
        return defaults.GUIDANCE_SCALE if self.is_bundled(model) else GUIDANCE_SCALE

    def pipe(self, model: str) -> Any:
        """Return a model's pipeline, loaded on first use.

        Args:
            model: name of an offered model.

        Raises:
            DataError: not offered.
            CheckpointError: it cannot be read.
        """
        source = self._source(model)
        with self._lock:
            if model not in self._pipes:
                pipelines.silence_loading()
                pipe = pipelines.load_pipeline(
                    source, dtype=self._dtype, device=self._device, scheduler=self._scheduler
                )
                pipe.set_progress_bar_config(disable=True)
                self._pipes[model] = pipe
            return self._pipes[model]

    def masker(self, name: str, model: str) -> Masker:
        """Return a masker for a model, loaded on first use.

        Args:
            name: name of an offered masker.
            model: name of an offered model.

        Raises:
            DataError: not offered.
            CheckpointError: it cannot be read.
            TargetError: made for another model.
        """
        saved = {f"found/{saved_name}": path for saved_name, path in self._folder.masks().items()}
        source = self._maskers.get(name) or saved.get(name)
        if source is None:
            raise DataError(f"expected a masker among {', '.join(self.masker_names()) or 'none'}, got {name!r}")
        pipe = self.pipe(model)
        with self._lock:
            masker = self._loaded_maskers.pop((name, model), None)
            if masker is None:
                masker = load(source, pipe)
            self._loaded_maskers[name, model] = masker  # the most recently used comes last
            while len(self._loaded_maskers) > _MAX_MASKERS:
                self._loaded_maskers.pop(next(iter(self._loaded_maskers)))
            return masker

    def reward(self, model: str) -> Reward | None:
        """Return the reward of a model's images, loaded on first use; None without one.

        Args:
            model: name of an offered model.

        Raises:
            DataError: no such model.
            RewardError: an unknown reward.
            CheckpointError: its weights cannot be read.
        """
        descriptions = self._rewards or ([defaults.REWARD] if self.is_bundled(model) else [])
        pipe = self.pipe(model)
        with self._lock:
            if model not in self._loaded_rewards:
                reward = parse_reward(descriptions).to(pipe.unet.device, pipe.unet.dtype) if descriptions else None
                self._loaded_rewards[model] = reward
            return self._loaded_rewards[model]

    def _source(self, model: str) -> str:
        if model not in self._models:
            raise DataError(f"expected a model among {', '.join(self._models)}, got {model!r}")
        return self._models[model]


def _short_names(sources: Sequence[str]) -> dict[str, str]:
    """Sources by a short name: the last part of a path, with a number where two are alike."""
    by_name: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        stem = Path(source).name or source
        name, number = stem, 2
        while name in by_name:
            name, number = f"{stem} ({number})", number + 1
        by_name[name] = source
    return by_name
