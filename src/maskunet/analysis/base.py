"""Input and output of every analysis: its settings; a question with its answer, tidy data and a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from ..files import make_folder, save_json, save_text
from ..plotting import save_figure
from ..settings import MAX_GUIDANCE_SCALE, Settings, integer, number, text
from ..zoo.defaults import NUM_INFERENCE_STEPS

if TYPE_CHECKING:
    from ..metrics.intervals import Estimate

#: The analyses, in the order of docs/analysis.md.
NAMES = ("random", "density", "masks", "weights", "emergence", "samples")
#: Called with the finished share of the work, in [0, 1], and the current task.
Progress = Callable[[float, str], None]
_SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class AnalysisSettings(Settings):
    """Settings of an analysis; an analysis ignores those that it does not need.

    Args:
        prompts: prompts of the images; None for held-out prompts of the shapes world, with the bundled model.
        num_inference_steps: denoising steps, >= 1.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off. The model's default if None.
        seed: image i starts from the noise of `seed + i`; random masks are drawn from it too.
        batch_size: prompts per call, >= 1; rounded up to a multiple of the sets of masks if their number is fixed.
        count: images per side. If None, the analysis' own number, or one image per prompt if there are prompts. Prompts
            repeat, each time with other noise.
        rates: drop ratios of `random`, each in (0, 1).
        mask_seeds: sets of random masks per drop ratio of `random`, >= 1.
        layer: layer whose bits `masks` draws; the layer with the highest share of switched-off weights if None.
        run: training run of `density`, a folder with stats.jsonl or that file; None skips the part over training.
        reference: folder of real images for `samples`; the bundled model has its own.
        features: feature space of `samples` (clip:SOURCE, dinov2:SOURCE, inception); the bundled CLIP if None.
        resolution: pixels per side of both sets of `samples`; 256, or 64 with the bundled model, if None.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].

    Raises:
        SettingError: a setting is out of range.
    """

    prompts: tuple[str, ...] | None = None
    num_inference_steps: int = integer(NUM_INFERENCE_STEPS, at_least=1, at_most=1000)
    guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE_SCALE, optional=True)
    seed: int = integer(0, at_least=0)
    batch_size: int = integer(24, at_least=1)
    count: int | None = integer(None, at_least=1, optional=True)
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5)
    mask_seeds: int = integer(3, at_least=1)
    layer: str | None = text(None, optional=True)
    run: Path | None = None
    reference: Path | None = None
    features: str | None = text(None, optional=True)
    resolution: int | None = integer(None, at_least=8, optional=True)
    guidance_rescale: float = number(0.0, at_least=0, at_most=1)

    def check(self) -> None:
        """Check prompts and drop ratios.

        Raises:
            SettingError: one of them is empty or out of range.
        """
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise SettingError(
                f"expected drop ratios between 0 and 1, got {', '.join(map(str, self.rates)) or 'none'}"
            )
        if isinstance(self.prompts, str) or (
            self.prompts is not None and (not self.prompts or not all(p.strip() for p in self.prompts))
        ):
            raise SettingError(f"expected prompts, at least one and no empty one, got {self.prompts!r}")


@dataclass(frozen=True)
class Analysis:
    """A finished analysis.

    Args:
        name: one of `NAMES`.
        title: the question.
        answer: the answer in a few sentences, with the measured numbers.
        rows: tidy data, one measured value per row: `measure`, `value`, bounds `low` and `high` of a 95 % interval (NaN
            without one), `unit`, and what the value depends on.
        settings: number of images, seed, steps and further settings, model, masker, machine.
        painter: draws the plot; called by `draw`.
    """

    name: str
    title: str
    answer: str
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    painter: Callable[[], Any] = field(repr=False, compare=False)

    def draw(self) -> Any:
        """Return the plot, a matplotlib Figure, titled with the question and the settings.

        Raises:
            DataError: matplotlib is not installed.
        """
        figure, s = self.painter(), self.settings
        parts = [f"n = {s['n']} {s.get('unit', 'images')}", f"seed {s['seed']}", f"{s['steps']} steps"]
        parts += [f"guidance {s['guidance_scale']:g}", s["model"], s["masker"], "95 % intervals"]
        figure.suptitle(f"{self.title}\n{' · '.join(parts)}", fontsize=10)
        return figure

    def save(self, folder: str | Path, *, svg: bool = False) -> list[Path]:
        """Write `NAME.png`, `NAME.csv` with one row per value, and `NAME.json` with arrays of values.

        Args:
            folder: receives the files.
            svg: also write `NAME.svg`.

        Returns:
            The paths.

        Raises:
            DataError: the folder cannot be written, or matplotlib is not installed.
        """
        path = Path(folder) / self.name
        make_folder(path.parent)
        written = save_figure(self.draw(), path.with_suffix(".png"), ("png", "svg") if svg else ("png",))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if _is_missing(v) else v for k, v in row.items()} for row in self.rows)
        csv_path, json_path = path.with_suffix(".csv"), path.with_suffix(".json")
        save_text(table.getvalue(), csv_path)
        head = {"name": self.name, "title": self.title, "answer": self.answer, "settings": self.settings}
        save_json(head | {"measures": to_arrays(self.rows)}, json_path)
        return [*written, csv_path, json_path]


def to_arrays(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tidy rows as compact arrays: one entry per run of rows that measure the same.

    A column that is constant over the entry is stored once, another as a list; bounds that are all missing are left out.

    Args:
        rows: tidy rows, see `Analysis`.
    """

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        return (
            row["measure"],
            row["unit"],
            *(f"{k}={row[k]}" for k in ("side", "group", "projection", "tenth") if k in row),
        )

    entries = []
    for _, group in groupby(rows, kind):
        same = list(group)
        columns = {key: [None if _is_missing(row.get(key)) else row.get(key) for row in same] for key in same[0]}
        entry: dict[str, Any] = {}
        for key, values in columns.items():
            if key in ("low", "high") and all(value is None for value in values):
                continue
            is_constant = key != "value" and all(value == values[0] for value in values)
            entry[key] = values[0] if is_constant or len(values) == 1 else values
        entries.append(entry)
    return entries


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def row(measure: str, value: Estimate | float, unit: str, **keys: Any) -> dict[str, Any]:
    """Return one row of tidy data; values keep four significant digits, whole numbers all of theirs.

    Args:
        measure: the measured quantity.
        value: its value, with an interval or without.
        unit: unit of the value.
        keys: what the value depends on.
    """
    numbers = (value, math.nan, math.nan) if isinstance(value, int | float) else _bounds(value)
    rounded = dict(zip(("value", "low", "high"), map(_round, numbers), strict=True))
    return {"measure": measure, **keys, **rounded, "unit": unit}


def _round(value: float) -> float:
    if not math.isfinite(value) or float(value).is_integer():
        return value
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _bounds(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def format_estimate(estimate: Estimate, spec: str = ".2f") -> str:
    """Return "0.51 [0.48, 0.53]"; without brackets if there is no interval, as with a single image.

    Args:
        estimate: the estimate.
        spec: format of each number.
    """
    return f"{estimate.value:{spec}}" if math.isnan(estimate.low) else f"{estimate:{spec}}"


def format_percent(estimate: Estimate | float, spec: str = ".1f", unit: str = "%") -> str:
    """Return a share as "3.2 % [3.0, 3.4]"; without brackets if there is no interval.

    Args:
        estimate: a share in [0, 1], or a difference of shares.
        spec: format of each number.
        unit: "%", or "points" for a difference.
    """
    if isinstance(estimate, int | float):
        return f"{100 * estimate:{spec}} {unit}"
    value, low, high = (100 * x for x in _bounds(estimate))
    bounds = "" if math.isnan(low) else f" [{low:{spec}}, {high:{spec}}]"
    return f"{value:{spec}} {unit}{bounds}"
