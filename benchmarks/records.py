"""Records of benchmarks: one compact JSON and one Markdown table each, in docs/results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from maskunet.files import make_folder, save_json, save_text
from maskunet.metrics.intervals import Estimate, student
from maskunet.zoo.defaults import CHANCE_TASK

#: What brackets mean in records of means over prompts, from which no other interval can be computed.
OLD_BOOTSTRAP = "95 % percentile bootstrap over prompts, with repeats of a prompt as if distinct (a little too narrow)"
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def save_record(record: dict[str, Any], path: Path, title: str, table: str, figures: Sequence[Path] = ()) -> None:
    """Write a record and its table, which shows the figures and links the record.

    Args:
        record: JSON values.
        path: the JSON file; the table gets the same name with the suffix `.md`.
        title: heading of the table's page.
        table: Markdown below the heading.
        figures: figures in the same folder.

    Raises:
        DataError: a file cannot be written.
    """
    make_folder(path.parent)
    save_json(record, path)
    images = [f"![{figure.stem.replace('_', ' ')}]({figure.name})" for figure in figures]
    parts = [f"# {title}", table.rstrip(), *images, f"Record: [{path.name}]({path.name})."]
    save_text("\n\n".join(parts) + "\n", path.with_suffix(".md"))


def read_record(path: Path) -> dict[str, Any]:
    """Return a record, or an empty one if there is no such file.

    Args:
        path: the JSON file.
    """
    return json.loads(path.read_text()) if path.is_file() else {}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table.

    Args:
        header: names of the columns.
        rows: one cell per column; None leaves a cell empty.
    """
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def machine_line(machine: dict[str, Any]) -> str:
    """Return a record's machine as text.

    Args:
        machine: from `maskunet.machine.machine`.
    """
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    device = machine["accelerator"] or f"{machine['cores']} cores, {threads}"
    return f"{machine['cpu']}, {device}, torch {machine['torch']}, diffusers {machine['diffusers']}"


def over_runs(values: Sequence[float]) -> Estimate:
    """Return the mean over runs with Student's 95 % interval; the bounds of a single run are NaN.

    Args:
        values: one figure per run.
    """
    return student(torch.tensor(values, dtype=torch.float64))


def mean_text(values: Sequence[float], limits: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """Return "mean [low, high]" with Student's 95 % interval; the mean alone for a single run, or for runs that agree.

    Args:
        values: one figure per run.
        limits: bounds of the interval: (0, 1) for shares.
    """
    estimate = over_runs(values)
    low, high = max(limits[0], estimate.low), min(limits[1], estimate.high)
    if math.isnan(estimate.low) or f"{low:.3f}" == f"{high:.3f}":
        return f"{estimate.value:.3f}"
    return f"{Estimate(estimate.value, low, high):.3f}"


def share_text(values: Sequence[float]) -> str:
    """Return the mean of shares with Student's 95 % interval, within [0, 1].

    Args:
        values: one share per run.
    """
    return mean_text(values, (0.0, 1.0))


def without_chance_task(accuracy: dict[str, float]) -> float:
    """Return the mean accuracy over all tasks but the one that the bundled model cannot do.

    Args:
        accuracy: share of right images by task, with "overall".
    """
    values = [value for task, value in accuracy.items() if task not in (CHANCE_TASK, "overall")]
    return sum(values) / len(values)


def signed(estimate: Estimate) -> str:
    """Return a difference as "+0.061 [+0.025, +0.098]".

    Args:
        estimate: the difference.
    """
    return f"{estimate:+.3f}"


def half_width(values: Sequence[float]) -> float:
    """Return half the width of Student's 95 % interval; 0 for a single run.

    Args:
        values: one figure per run.
    """
    estimate = over_runs(values)
    return 0.0 if math.isnan(estimate.low) else (estimate.high - estimate.low) / 2


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """Return values rounded to significant digits, as records keep one value per image.

    Args:
        values: the values.
        digits: significant digits.
    """
    return [float(f"{value:.{digits}g}") for value in values]


def bounds(estimate: Estimate, digits: int = 4) -> list[float | None]:
    """Return an estimate as [value, low, high]; a bound that does not exist is None.

    Args:
        estimate: a figure with its interval.
        digits: decimal places.
    """
    return [None if math.isnan(x) else round(x, digits) for x in (estimate.value, estimate.low, estimate.high)]
