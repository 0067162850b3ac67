"""What every analysis takes and gives: settings in, a question with its answer, tidy data and a plot out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import make_folder, save_text
from ..plotting import save_figure

if TYPE_CHECKING:
    from ..metrics.intervals import Estimate

#: The analyses, in the order in which a reader wants them.
NAMES = ("random", "density", "masks", "weights", "emergence", "samples")
#: Told of progress: the share that is done, in [0, 1], and what is being done.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of an analysis; those that it does not need are left unread.

    Args:
        prompts: what to draw; None for held-out prompts of the shapes world, which only the bundled model has.
        num_inference_steps: denoising steps, >= 1.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off.
        seed: picture i starts from the noise of `seed + i`; random masks are drawn from it too.
        batch_size: prompts a call, >= 1; raised to a multiple of the sets of masks where their number is fixed.
        count: pictures a side; the analysis' own number if None, or a picture a given prompt. Prompts repeat, each time
            from other noise.
        rates: drop ratios of `random`, in (0, 1).
        mask_seeds: sets of masks a drop ratio of `random`, >= 1.
        layer: layer whose bits `masks` draws; the one with most weights switched off if None.
        run: training run of `density`, a folder with stats.jsonl or that file; without one nothing over training.
        reference: folder of real pictures for `samples`; the bundled model has its own.
        features: feature space of `samples` (clip:SOURCE, dinov2:SOURCE, inception); the bundled CLIP if None.
        resolution: pixels a side that `samples` brings both sets to; 256, or 64 with the bundled model, if None.

    Raises:
        DataError: a setting out of range.
    """

    prompts: tuple[str, ...] | None = None
    num_inference_steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 0
    batch_size: int = 24
    count: int | None = None
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5)
    mask_seeds: int = 3
    layer: str | None = None
    run: Path | None = None
    reference: Path | None = None
    features: str | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        counts = (self.num_inference_steps, self.batch_size, self.mask_seeds, 1 if self.count is None else self.count)
        if min(counts) < 1:
            raise DataError(
                f"expected steps, batch size, mask seeds and count of at least 1, got {', '.join(map(str, counts))}"
            )
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise DataError(f"expected drop ratios between 0 and 1, got {', '.join(map(str, self.rates)) or 'none'}")
        if isinstance(self.prompts, str) or (
            self.prompts is not None and (not self.prompts or not all(p.strip() for p in self.prompts))
        ):
            raise DataError(f"expected prompts, at least one and no empty one, got {self.prompts!r}")


@dataclass(frozen=True)
class Analysis:
    """A finished analysis.

    Args:
        name: one of `NAMES`.
        title: the question.
        answer: one sentence with the measured numbers.
        rows: tidy data, a measured value a row: `measure`, `value`, bounds `low` and `high` of a 95 % interval (NaN
            where there is none), `unit`, and what else the measure depends on.
        settings: n, seed, steps and what else it was made with, model, masker, machine.
        painter: draws the plot; called by `draw`.
    """

    name: str
    title: str
    answer: str
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    painter: Callable[[], Any] = field(repr=False, compare=False)

    def draw(self) -> Any:
        """Return the plot, a matplotlib Figure, under the question and what it was measured on.

        Raises:
            DataError: matplotlib is not installed.
        """
        figure, s = self.painter(), self.settings
        words = [f"n = {s['n']} {s.get('unit', 'pictures')}", f"seed {s['seed']}", f"{s['steps']} steps"]
        words += [f"guidance {s['guidance_scale']:g}", s["model"], s["masker"], "95 % intervals"]
        figure.suptitle(f"{self.title}\n{' · '.join(words)}", fontsize=10)
        return figure

    def save(self, folder: str | Path) -> list[Path]:
        """Write `NAME.png`, `NAME.svg`, `NAME.csv` and `NAME.json`, each under a temporary name first.

        Returns:
            The four paths.

        Raises:
            DataError: the folder cannot be written, or matplotlib is not installed.
        """
        place = Path(folder)
        make_folder(place)
        written = save_figure(self.draw(), place / f"{self.name}.png")
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if _missing(v) else v for k, v in row.items()} for row in self.rows)
        head = {"name": self.name, "title": self.title, "answer": self.answer, "settings": self.settings}
        rows = ",\n".join(json.dumps({k: None if _missing(v) else v for k, v in row.items()}) for row in self.rows)
        text = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n]\n}}\n'  # a row a line
        for suffix, content in ((".csv", table.getvalue()), (".json", text)):
            save_text(content, place / f"{self.name}{suffix}")
            written.append(place / f"{self.name}{suffix}")
        return written


def _missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def row(measure: str, value: Estimate | float, unit: str, **keys: Any) -> dict[str, Any]:
    """Return a row of tidy data.

    Args:
        measure: what was measured.
        value: with an interval or without.
        unit: of the value.
        keys: what it depends on.
    """
    middle, low, high = (value, math.nan, math.nan) if isinstance(value, (int, float)) else _three(value)
    digits = {"value": round(float(middle), 6), "low": round(low, 6), "high": round(high, 6)}
    return {"measure": measure, **keys, **digits, "unit": unit}


def _three(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def brief(estimate: Estimate, spec: str = ".2f") -> str:
    """Return "0.51 [0.48, 0.53]" in a format; without brackets where it has no interval, as of a single picture."""
    return f"{estimate.value:{spec}}" if math.isnan(estimate.low) else f"{estimate:{spec}}"


def percent(estimate: Estimate | float, digits: int = 1) -> str:
    """Return a share as "3.2 % [3.0, 3.4]"; without brackets where it has no interval."""
    if isinstance(estimate, (int, float)):
        return f"{100 * estimate:.{digits}f} %"
    value, low, high = (100 * x for x in _three(estimate))
    bounds = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f} %{bounds}"
