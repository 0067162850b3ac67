"""Reports of an evaluation: tables for people, JSON values for programs, and both as files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import make_folder, save_json, save_text
from ..version import __version__
from .image_reader import black_note
from .scores import Scores

#: Metrics of a folder of images, in the order of the table's columns.
_COLUMNS = ("fid", "kid", "cmmd", "precision", "recall", "clip_score")


def _versions() -> dict[str, str]:
    import torch

    return {"maskunet": __version__, "torch": torch.__version__}


def _with_notes(table: str, notes: Sequence[str]) -> str:
    return "\n".join([table, *(f"\n{note}" for note in notes)])


@dataclass(frozen=True)
class BenchmarkReport:
    """Result of `evaluate`.

    Args:
        benchmark: name of the benchmark.
        scores: scores by task and side; None on every process but the first, whose report is empty.
        settings: further values of the record: images per prompt, seed, settings of each side; `black_images`, the number
            of black images and of all images by side.
    """

    benchmark: str
    scores: Scores | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return the table: one row per task, one column per side, differences from the first side; 95 % intervals."""
        if self.scores is None:
            return ""
        return _with_notes(self.scores.to_markdown(), self.black_notes())

    def black_notes(self) -> list[str]:
        """Return one note per side with black images, which a safety checker leaves."""
        black = self.settings.get("black_images") or {}
        return [note for name, (count, total) in black.items() if (note := black_note(name, count, total))]

    def to_dict(self) -> dict[str, Any]:
        """Return benchmark, settings, scores and versions as JSON values."""
        scores = {} if self.scores is None else self.scores.to_dict()
        return {"benchmark": self.benchmark, **self.settings, "scores": scores, "versions": _versions()}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `summary.json` and `summary.md`; an empty report writes nothing.

        Args:
            folder: receives the files.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.scores is not None:
            make_folder(Path(folder))
            save_json(self.to_dict(), Path(folder) / "summary.json")
            save_text(self.to_markdown() + "\n", Path(folder) / "summary.md")


@dataclass(frozen=True)
class ImageReport:
    """Result of `measure_images`.

    Args:
        metrics: `n`, `fid`, `kid`, ... by feature space; empty on every process but the first.
        settings: folders, resolution, number of black images, and how the images were generated.
    """

    metrics: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return the table: one row per feature space, one column per metric."""
        columns = [name for name in _COLUMNS if any(name in values for values in self.metrics.values())]
        lines = [f"| features | n | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
        for name, values in self.metrics.items():
            cells = [f"{values[column]:.4f}" if column in values else "" for column in columns]
            lines.append(f"| {name} | {values['n']:.0f} | {' | '.join(cells)} |")
        if not self.metrics:
            return ""
        total = int(next(iter(self.metrics.values()))["n"])
        note = black_note(
            str(self.settings.get("images", "the folder")), self.settings.get("black_images") or 0, total
        )
        return _with_notes("\n".join(lines), [note] if note else [])

    def to_dict(self) -> dict[str, Any]:
        """Return settings, metrics and versions as JSON values."""
        metrics = {name: dict(values) for name, values in self.metrics.items()}
        return {**self.settings, "metrics": metrics, "versions": _versions()}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `metrics.json` and `metrics.md`; an empty report writes nothing.

        Args:
            folder: receives the files.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.metrics:
            make_folder(Path(folder))
            save_json(self.to_dict(), Path(folder) / "metrics.json")
            save_text(self.to_markdown() + "\n", Path(folder) / "metrics.md")
