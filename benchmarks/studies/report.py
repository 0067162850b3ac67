"""A finished table as text: means over training seeds, intervals, the paper's figures beside ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from maskunet.shapes.vocabulary import TASKS

#: What the paper reports on COCO 2017 (FID-5k), for the column beside ours.
PAPER = {
    "base": 23.39,
    "full": 24.45,
    "full + dropout": 26.56,
    "LoRA": 23.18,
    "masks": 21.88,
    "random masks": 270.22,
}


def student(values: Sequence[float]) -> str:
    """Return "mean [low, high]" with Student's 95 % interval; the mean alone for a single value."""
    middle = mean(values)
    if len(values) < 2:
        return f"{middle:.3f}"
    half = half_width(values)
    return f"{middle:.3f} [{middle - half:.3f}, {middle + half:.3f}]"


def seeds_of(config: dict[str, Any]) -> str:
    """Return how many training seeds, in words."""
    return "one training seed" if config["seeds"] == 1 else f"{config['seeds']} training seeds"


def half_width(values: Sequence[float]) -> float:
    """Return half of Student's 95 % interval of the mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def table1_markdown(result: dict[str, Any]) -> str:
    """Return the table: mean over training seeds with Student's 95 % interval, and differences to the base."""
    config, cells = result["config"], result["cells"]
    lines = [
        "| method | rate | density | FID, CLIP | minus base | FID, VAE | overall | minus base | CLIP score | paper, FID |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def values(name: str, *keys: str) -> list[float]:
        found: list[float] = []
        for cell in cells[name]:
            value: Any = cell
            for key in keys:
                value = value[key]
            found.append(float(value))
        return found

    def difference(name: str, *keys: str) -> str:
        pairs = zip(values(name, *keys), values("base", *keys), strict=True)
        return "" if name == "base" else student([a - b for a, b in pairs])

    for name in cells:
        first = cells[name][0]
        rate = f"{first['learning_rate']:g}" if "learning_rate" in first else ""
        density = "" if first.get("density") is None else f"{sum(values(name, 'density')) / len(cells[name]):.4f}"
        row = [
            name,
            rate,
            density,
            student(values(name, "fid", "clip")),
            difference(name, "fid", "clip"),
            student(values(name, "fid", "vae")),
            student(values(name, "accuracy", "overall")),
            difference(name, "accuracy", "overall"),
            student(values(name, "clip_score")),
            f"{PAPER[name]:.2f}" if name in PAPER else "",
        ]
        lines.append(f"| {' | '.join(row)} |")
    tasks = ["", f"| method | {' | '.join(TASKS)} |", "|---|" + "---|" * len(TASKS)]
    for name in cells:
        tasks.append(f"| {name} | {' | '.join(student(values(name, 'accuracy', task)) for task in TASKS)} |")
    head = (
        f"{config['seeds']} training seeds, {config['prompts'] * config['pictures']} pictures a cell, {config['steps']} "
        f"steps of 64 on `shapes-art`, evaluated zero-shot on `shapes` ({config['num_inference_steps']} DPM-Solver++ steps, "
        f"guidance {config['guidance_scale']:g}). Brackets: Student's 95 % interval over training seeds; differences "
        "are paired by seed and noise. Rates chosen by FID on the validation split.\n"
    )
    tried = [
        "",
        "Every rate that was tried (seed 0, validation split): what a method gains on held-out art pictures, in diffusion",
        "loss, and what it costs on the first world.",
        "",
        "| method | rate | art gain | density | FID, CLIP | overall |",
        "|---|---|---|---|---|---|",
    ]
    for name, rates in result["rates"].items():
        for rate, cell in rates.items():
            density = "" if cell["density"] is None else f"{cell['density']:.4f}"
            own = f"{cell['art_gain']:.4f} | {density} | {cell['fid']['clip']:.2f} | {cell['accuracy']['overall']:.3f}"
            tried.append(f"| {name} | {rate} | {own} |")
    return "\n".join([head, *lines, *tasks, *tried]) + "\n"


#: The paper's ablations on COCO 2017 (FID-5k).
PAPER_ABLATIONS = {
    "decoder attention, both": 21.88,
    "without timestep": 22.30,
    "without sample": 22.14,
    "decoder attention + conv": 21.79,
    "all layers": 22.10,
}


def ablations_markdown(result: dict[str, Any]) -> str:
    """Return the ablations as a table, and density and FID over training as another."""
    config, cells = result["config"], result["cells"]
    lines = [
        f"{seeds_of(config)}, {config['prompts']} pictures a cell, {config['steps']} steps of 64 on "
        f"`shapes-art` at rate {config['learning_rate']:g} from logits {config['initial_logit']:g}. Brackets: Student's "
        "95 % interval over training seeds; a row without brackets has one seed.",
        "",
        "| masks | parameters | art gain | density | FID, CLIP | FID, VAE | overall | paper, FID |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, made in cells.items():
        own = ["", "", ""]
        if name != "base":
            gain = student([c["art_gain"] for c in made])
            own = [f"{made[0]['parameters'] / 1e6:.2f} M", gain, student([c["density"] for c in made])]
        row = [
            name,
            *own,
            student([c["fid"]["clip"] for c in made]),
            student([c["fid"]["vae"] for c in made]),
            student([c["accuracy"]["overall"] for c in made]),
            f"{PAPER_ABLATIONS[name]:.2f}" if name in PAPER_ABLATIONS else "",
        ]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "Over training (seed 0):", "", "| step | density | FID, CLIP | overall |", "|---|---|---|---|"]
    for shot in result["snapshots"]:
        density = 1.0 if shot["density"] is None else shot["density"]
        fid, overall = shot["fid"]["clip"], shot["accuracy"]["overall"]
        lines.append(f"| {shot['step']} | {density:.4f} | {fid:.3f} | {overall:.3f} |")
    return "\n".join(lines) + "\n"
