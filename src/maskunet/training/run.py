"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..maskers import Masker
from .base import Method
from .mask_method import MaskMethod


@dataclass(frozen=True)
class Run:
    """The result of a training run.

    Args:
        method: the method with its trained parameters, removed from the pipeline.
        folder: the run's folder.
        stats: entries of the log, `stats.jsonl`.
        card: what the model card says about the run, for a masker's `save_pretrained` and `push_to_hub`.
    """

    method: Method
    folder: Path
    stats: list[dict[str, Any]]
    card: dict[str, Any]

    @property
    def masker(self) -> Masker:
        """The trained masker, in evaluation mode.

        Raises:
            SettingError: the method trains no masker.
        """
        if not isinstance(self.method, MaskMethod):
            raise SettingError(f"expected a run that trains a masker, method {self.method.name!r} does not")
        return self.method.masker
