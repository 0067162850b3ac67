"""The comparison at equal compute as a table and a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.records import (
    half_width,
    markdown_table,
    mean_text,
    share_text,
    signed,
    without_chance_task,
)
from benchmarks.studies.report import CHANCE_NOTE
from benchmarks.studies.search import MEMORY_BATCH
from maskunet.metrics.intervals import Changes, Estimate, over_prompts, sign_test
from maskunet.plotting import error_bars, new_figure, save_figure
from maskunet.shapes.scenes import held_out_prompts
from maskunet.zoo.defaults import CHANCE_TASK

Measure = Literal["correct", "reward", "referee"]
Cells = list[dict[str, Any]]


class PromptValues:
    """Figures over the prompts and noises of a record that has one value per image.

    Args:
        config: the study's config as JSON values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        prompts = held_out_prompts(config["prompts"], config["split"])
        self.prompts = [p.prompt for p in prompts] * config["seeds"]
        self.tasks = [p.task for p in prompts] * config["seeds"]

    def mean(
        self,
        cells: Cells,
        measure: Measure = "correct",
        *,
        task: str | None = None,
        without: str | None = None,
        minus: Cells | None = None,
    ) -> Estimate:
        """Return the mean over tasks, with an interval over distinct prompts.

        Args:
            cells: one cell per set of noises.
            measure: the judge's verdict or a reward.
            task: one task; all if None.
            without: a task that is left out.
            minus: cells of the same prompts and noises to subtract.
        """
        index = [i for i, t in enumerate(self.tasks) if task in (None, t) and t != without]
        values = _each(cells, measure)
        if minus is not None:
            values = values - _each(minus, measure)
        limits = None if measure != "correct" else (0.0, 1.0) if minus is None else (-1.0, 1.0)
        prompts, tasks = [self.prompts[i] for i in index], [self.tasks[i] for i in index]
        return over_prompts(values[index], prompts, tasks, limits=limits)


def _each(cells: Cells, measure: Measure) -> torch.Tensor:
    return torch.tensor([value for cell in cells for value in cell["each"][measure]], dtype=torch.float64)


def mended_and_spoilt(cells: Cells, plain: Cells) -> Changes:
    """Return how many images are right that plain sampling gets wrong, and the reverse.

    Args:
        cells: a method's cells, one per set of noises.
        plain: those of plain sampling.
    """
    return sign_test(_each(plain, "correct"), _each(cells, "correct"))


def _has_each(record: dict[str, Any]) -> bool:
    return all("each" in cell for cells in record["cells"].values() for cell in cells)


def _accuracy_rows(record: dict[str, Any]) -> list[list[str | None]]:
    """Return by method: overall, its difference to plain sampling, changed images, and the first two without position."""
    plain, rows = record["cells"]["plain"], []
    values = PromptValues(record["config"])
    for name, cells in record["cells"].items():
        row: list[str | None] = [name]
        for without in (None, CHANCE_TASK):
            if _has_each(record):
                share = str(values.mean(cells, without=without))
                gain = signed(values.mean(cells, without=without, minus=plain))
            else:
                score: Callable[[dict[str, Any]], float] = (
                    (lambda c: c["accuracy"]["overall"])
                    if without is None
                    else (lambda c: without_chance_task(c["accuracy"]))
                )
                share = share_text([score(c) for c in cells])
                gain = mean_text([score(c) - score(p) for c, p in zip(cells, plain, strict=True)])
            row += [share, None if name == "plain" else gain]
            if without is None and _has_each(record):
                row.append(None if name == "plain" else str(mended_and_spoilt(cells, plain)))
        rows.append(row)
    return rows


def search_markdown(record: dict[str, Any]) -> str:
    """Return accuracy, the other measures and accuracy by task, with intervals and paired differences to plain sampling.

    Args:
        record: from `run_search_study`.
    """
    config, all_cells, memory = record["config"], record["cells"], record.get("memory", {})
    has_each, values = _has_each(record), PromptValues(config)
    tasks = [t for t in all_cells["plain"][0]["accuracy"] if t != "overall"]
    costs, by_task = [], []
    for name, cells in all_cells.items():
        means = [
            str(values.mean(cells, measure)) if has_each else mean_text([c[measure] for c in cells])
            for measure in ("reward", "referee")
        ]
        distances = [mean_text([c["fid"][space] for c in cells]) for space in ("clip", "vae")]
        seconds = sum(c["seconds"] / c["n"] for c in cells) / len(cells)
        row = [name, *means, *distances, f"{cells[0]['forwards']:.0f}", f"{seconds:.2f}"]
        costs.append([*row, f"{memory[name]:.2f}"] if memory else row)
        shares = [
            str(values.mean(cells, task=t)) if has_each else share_text([c["accuracy"][t] for c in cells])
            for t in tasks
        ]
        by_task.append([name, *shares])
    columns = ["method", "overall", "minus plain", *(["mended, spoilt"] if has_each else [])]
    columns += [f"without {CHANCE_TASK}", "minus plain"]
    cost_columns = ["method", "reward", "referee", "FID, CLIP", "FID, VAE", "forwards", "seconds per image"]
    peak = f" GiB: peak of a process that makes {MEMORY_BATCH} images at once." if memory else ""
    student = f"Student's 95 % interval over the {config['seeds']} sets of noises, for these prompts"
    distinct = len(set(values.prompts))
    brackets = (
        f"95 % over the {distinct} distinct prompts, with their noises inside; of FIDs {student}. Mended and spoilt: images "
        "that are right with the method alone, and with plain sampling alone; exact two-sided sign test"
        if has_each
        else f"{student}; the record has no values of single images, so they say nothing about other prompts. No "
        "brackets: all sets agree"
    )
    return "\n\n".join(
        [
            f"{config['prompts']} {config['split']} prompts x {config['seeds']} seeds, {config['num_inference_steps']} DDIM "
            f"steps, guidance {config['guidance_scale']:g}. Methods optimise `{config['reward']}`; the referee is "
            "a second reward, trained separately. Forwards: all operations (U-Net, decoder, reward) over those of one "
            f"guided U-Net call. Differences are paired by prompt and noise. Brackets: {brackets}. {CHANCE_NOTE}{peak}",
            markdown_table(columns, _accuracy_rows(record)),
            markdown_table([*cost_columns, *(["GiB"] if memory else [])], costs),
            markdown_table(["method", *tasks], by_task),
        ]
    )


def plot_search(record: dict[str, Any], folder: Path, name: str = "search") -> list[Path]:
    """Draw reward, referee and judge by method, with each method's compute; return the figure's path.

    Args:
        record: from `run_search_study`.
        folder: output folder.
        name: name of the figure, without its suffix.
    """
    config, all_cells = record["config"], record["cells"]
    has_each, values = _has_each(record), PromptValues(config)
    figure, axes = new_figure(1, 3)
    names = [f"{method} ({cells[0]['forwards']:.0f})" for method, cells in all_cells.items()]
    panels: list[tuple[str, Measure, Callable[[dict[str, Any]], float]]] = [
        ("optimised reward", "reward", lambda c: c["reward"]),
        ("referee", "referee", lambda c: c["referee"]),
        ("judge, overall", "correct", lambda c: c["accuracy"]["overall"]),
    ]
    for axis, (label, measure, value) in zip(axes[0], panels, strict=True):
        groups = [[value(c) for c in cells] for cells in all_cells.values()]
        widths = [half_width(g) for g in groups]
        if has_each:
            estimates = [values.mean(cells, measure) for cells in all_cells.values()]
            widths = [(e.high - e.low) / 2 for e in estimates]
        error_bars(axis, names, groups, half_widths=widths)
        axis.set_xlabel(label)
    for axis in axes[0, 1:]:
        axis.set_yticklabels([])
    count = f"{config['prompts']} prompts x {config['seeds']} seeds"
    over = "prompts" if has_each else "seeds"
    figure.suptitle(f"Gain for compute ({count}; 95 % over {over}; in brackets guided U-Net calls per image)")
    return save_figure(figure, folder / f"{name}.png", ["png"])
