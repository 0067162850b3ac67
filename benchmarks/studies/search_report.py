"""The comparison at equal compute as a table and a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.studies.report import half_width, student
from benchmarks.studies.search import MEMORY_BATCH
from maskunet.plotting import error_bars, new_figure, save_figure


def search_markdown(result: dict[str, Any]) -> str:
    """Return the table: means over seeds with Student's 95 % interval, differences to plain sampling paired."""
    study, cells, memory = result["study"], result["cells"], result.get("memory", {})
    measured = f" GiB: peak of a process that makes {MEMORY_BATCH} pictures at once." if memory else ""
    lines = [
        f"{study['prompts']} {study['split']} prompts x {study['seeds']} seeds, {study['num_inference_steps']} DDIM steps, "
        f"guidance {study['guidance_scale']:g}. Forwards: all operations (U-Net, decoder, reward) over those of one guided "
        "U-Net call. Brackets: Student's 95 % interval over seeds; differences are paired. The referee is a second "
        f"reward, trained apart from the one that methods see, {study['reward']}.{measured}",
        "",
        "| method | reward | referee | overall | minus plain | FID, CLIP | FID, VAE | forwards | seconds a picture |"
        + (" GiB |" if memory else ""),
        "|---|---|---|---|---|---|---|---|---|" + ("---|" if memory else ""),
    ]
    for name, made in cells.items():
        overall = [c["accuracy"]["overall"] for c in made]
        gains = [a - b["accuracy"]["overall"] for a, b in zip(overall, cells["plain"], strict=True)]
        row = [
            name,
            student([c["reward"] for c in made]),
            student([c["referee"] for c in made]),
            student(overall),
            "" if name == "plain" else student(gains),
            student([c["fid"]["clip"] for c in made]),
            student([c["fid"]["vae"] for c in made]),
            f"{made[0]['forwards']:.0f}",
            f"{sum(c['seconds'] / c['n'] for c in made) / len(made):.2f}",
            *([f"{memory[name]:.2f}"] if memory else []),
        ]
        lines.append(f"| {' | '.join(row)} |")
    tasks = list(cells["plain"][0]["accuracy"])
    lines += ["", f"| method | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name, made in cells.items():
        lines.append(f"| {name} | {' | '.join(student([c['accuracy'][t] for c in made]) for t in tasks)} |")
    return "\n".join(lines) + "\n"


def plot_search(result: dict[str, Any], folder: Path, name: str = "search") -> list[Path]:
    """Draw reward, referee and judge by method, with each method's compute.

    Args:
        result: what `run_study` returned.
        folder: where to.
        name: of the figure's files.
    """
    study, cells = result["study"], result["cells"]
    figure, axes = new_figure(1, 3)
    names = [f"{name} ({made[0]['forwards']:.0f})" for name, made in cells.items()]
    panels: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("reward that methods see", lambda c: c["reward"]),
        ("referee", lambda c: c["referee"]),
        ("judge, overall", lambda c: c["accuracy"]["overall"]),
    ]
    for axis, (label, value) in zip(axes[0], panels, strict=True):
        groups = [[value(c) for c in made] for made in cells.values()]
        error_bars(axis, names, groups, half_widths=[half_width(g) for g in groups])
        axis.set_xlabel(label)
    for axis in axes[0, 1:]:
        axis.set_yticklabels([])
    count = f"{study['prompts']} prompts x {study['seeds']} seeds"
    figure.suptitle(f"What compute buys ({count}; 95 % over seeds; in brackets guided U-Net calls a picture)")
    return save_figure(figure, folder / name)
