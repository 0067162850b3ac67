"""The comparison at equal compute as a table and a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.records import half_width, markdown_table, mean_text
from benchmarks.studies.search import MEMORY_BATCH
from maskunet.plotting import error_bars, new_figure, save_figure


def search_markdown(record: dict[str, Any]) -> str:
    """Return the table and accuracy by task: means over seeds with intervals, paired differences to plain sampling.

    Args:
        record: from `run_search_study`.
    """
    config, all_cells, memory = record["config"], record["cells"], record.get("memory", {})
    rows = []
    for name, cells in all_cells.items():
        overall = [c["accuracy"]["overall"] for c in cells]
        gains = [a - b["accuracy"]["overall"] for a, b in zip(overall, all_cells["plain"], strict=True)]
        row = [
            name,
            mean_text([c["reward"] for c in cells]),
            mean_text([c["referee"] for c in cells]),
            mean_text(overall),
            None if name == "plain" else mean_text(gains),
            mean_text([c["fid"]["clip"] for c in cells]),
            mean_text([c["fid"]["vae"] for c in cells]),
            f"{cells[0]['forwards']:.0f}",
            f"{sum(c['seconds'] / c['n'] for c in cells) / len(cells):.2f}",
        ]
        rows.append([*row, f"{memory[name]:.2f}"] if memory else row)
    columns = ["method", "reward", "referee", "overall", "minus plain", "FID, CLIP", "FID, VAE", "forwards"]
    columns += ["seconds per image", *(["GiB"] if memory else [])]
    tasks = list(all_cells["plain"][0]["accuracy"])
    by_task = [[n, *(mean_text([c["accuracy"][t] for c in cells]) for t in tasks)] for n, cells in all_cells.items()]
    peak = f" GiB: peak of a process that makes {MEMORY_BATCH} images at once." if memory else ""
    return "\n\n".join(
        [
            f"{config['prompts']} {config['split']} prompts x {config['seeds']} seeds, {config['num_inference_steps']} DDIM "
            f"steps, guidance {config['guidance_scale']:g}. Methods optimise `{config['reward']}`; the referee is "
            "a second reward, trained separately. Forwards: all operations (U-Net, decoder, reward) over those of one "
            f"guided U-Net call. Brackets: Student's 95 % interval over seeds; differences are paired.{peak}",
            markdown_table(columns, rows),
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
    figure, axes = new_figure(1, 3)
    names = [f"{method} ({cells[0]['forwards']:.0f})" for method, cells in all_cells.items()]
    panels: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("optimised reward", lambda c: c["reward"]),
        ("referee", lambda c: c["referee"]),
        ("judge, overall", lambda c: c["accuracy"]["overall"]),
    ]
    for axis, (label, value) in zip(axes[0], panels, strict=True):
        groups = [[value(c) for c in cells] for cells in all_cells.values()]
        error_bars(axis, names, groups, half_widths=[half_width(g) for g in groups])
        axis.set_xlabel(label)
    for axis in axes[0, 1:]:
        axis.set_yticklabels([])
    count = f"{config['prompts']} prompts x {config['seeds']} seeds"
    figure.suptitle(f"Gain for compute ({count}; 95 % over seeds; in brackets guided U-Net calls per image)")
    return save_figure(figure, folder / f"{name}.png", ["png"])
