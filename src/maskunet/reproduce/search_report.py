"""The comparison at equal compute as a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plotting import COLOURS, MARKERS, new_figure, save_figure
from .report import half_width, student


def search_markdown(result: dict[str, Any]) -> str:
    """Return the table: means over seeds with Student's 95 % interval, differences to plain sampling paired."""
    study, cells = result["study"], result["cells"]
    lines = [
        f"{study['prompts']} {study['split']} prompts x {study['seeds']} seeds, {study['num_inference_steps']} DDIM steps, "
        f"guidance {study['guidance_scale']:g}. Forwards: all operations (U-Net, decoder, reward) over those of one guided "
        "U-Net call. Brackets: Student's 95 % interval over seeds; differences are paired. The referee is a second "
        "reward, trained apart from the one that methods see.",
        "",
        "| method | reward | referee | overall | minus plain | FID, CLIP | FID, VAE | forwards | seconds a picture |",
        "|---|---|---|---|---|---|---|---|---|",
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
        ]
        lines.append(f"| {' | '.join(row)} |")
    tasks = list(cells["plain"][0]["accuracy"])
    lines += ["", f"| method | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name, made in cells.items():
        lines.append(f"| {name} | {' | '.join(student([c['accuracy'][t] for c in made]) for t in tasks)} |")
    return "\n".join(lines) + "\n"


def plot_search(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `search`: reward and judge of each method against its compute.

    Args:
        result: what `run_study` returned.
        folder: where to.
    """
    study = result["study"]
    figure, axes = new_figure(1, 2)
    panels = ((lambda c: c["reward"], "reward"), (lambda c: c["accuracy"]["overall"], "judge, overall"))
    for axis, (value, label) in zip(axes[0], panels, strict=True):
        for i, (name, made) in enumerate(result["cells"].items()):
            values = [value(c) for c in made]
            axis.errorbar(
                made[0]["forwards"],
                sum(values) / len(values),
                yerr=half_width(values),
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                capsize=3,
                label=name,
                linestyle="none",
            )
        axis.set_xscale("log")
        axis.set_xlabel("compute (guided U-Net calls)")
        axis.set_ylabel(label)
    axes[0, 1].legend(fontsize=7)
    figure.suptitle(f"What compute buys ({study['prompts']} prompts x {study['seeds']} seeds, 95 %)")
    return save_figure(figure, folder / "search")
