"""The comparison of masks and LoRA trained by a reward as a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.report import half_width, mean, student
from maskunet.plotting import COLOURS, MARKERS, new_figure, save_figure


def amortised_markdown(result: dict[str, Any]) -> str:
    """Return the tables: test cells over training seeds, then the rates that were tried on validation prompts."""
    config, cells = result["config"], result["cells"]
    lines = [
        f"{config['steps']} steps, {config['reward_batch_size']} rewarded samples a step; {config['prompts']} test prompts, "
        f"{config['num_inference_steps']} DPM-Solver++ steps, guidance {config['guidance_scale']:g}, the same noise for "
        f"all. Climbed: {config['reward']}, weight {config['reward_weight']:g}. Brackets: Student's 95 % interval over "
        f"{config['seeds']} training seeds. The referee is another reward, trained apart.",
        "",
        "| method | rate | reward | referee | overall | minus base | FID, CLIP | FID, VAE | density |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = cells["base"][0]
    for name, made in cells.items():
        overall = [c["accuracy"]["overall"] for c in made]
        row = [
            name,
            f"{result['chosen'][name]:g}" if name in result["chosen"] else "",
            student([c["reward"] for c in made]),
            student([c["referee"] for c in made]),
            student(overall),
            "" if name == "base" else student([o - base["accuracy"]["overall"] for o in overall]),
            student([c["fid"]["clip"] for c in made]),
            student([c["fid"]["vae"] for c in made]),
            "" if made[0]["density"] is None else f"{mean([c['density'] for c in made]):.4f}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    tasks = list(base["accuracy"])
    lines += ["", f"| method | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name, made in cells.items():
        lines.append(f"| {name} | {' | '.join(student([c['accuracy'][t] for c in made]) for t in tasks)} |")
    lines += ["", "Rates tried on validation prompts, one seed; the judge chose.", ""]
    lines += ["| method | rate | reward | referee | overall | FID, CLIP |", "|---|---|---|---|---|---|"]
    for label, found in _tried(result):
        values = (found["reward"], found["referee"], found["accuracy"]["overall"])
        lines.append(f"| {label} | {' | '.join(f'{v:.3f}' for v in values)} | {found['fid']['clip']:.2f} |")
    return "\n".join(lines) + "\n"


def _tried(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    validation = result["validation"]
    rows = [("base | ", validation["base"])]
    return rows + [(f"{m} | {r}", c) for m in result["chosen"] for r, c in validation[m].items()]


def plot_amortised(result: dict[str, Any], folder: Path, name: str = "amortised") -> list[Path]:
    """Draw judge and referee against the reward that was climbed.

    Args:
        result: what `reproduce_amortised` returned.
        folder: where to.
        name: of the figure's files.
    """
    figure, axes = new_figure(1, 2)
    panels = ((lambda c: c["accuracy"]["overall"], "judge, overall"), (lambda c: c["referee"], "referee"))
    for axis, (value, label) in zip(axes[0], panels, strict=True):
        for i, (method, made) in enumerate(result["cells"].items()):
            style = {"color": COLOURS[i], "marker": MARKERS[i]}
            across, up = [c["reward"] for c in made], [value(c) for c in made]
            axis.errorbar(
                mean(across), mean(up), half_width(up), half_width(across), capsize=3, label=f"{method}, test", **style
            )
            if method in result["chosen"]:
                tried = result["validation"][method].values()
                axis.scatter(
                    [c["reward"] for c in tried],
                    [value(c) for c in tried],
                    facecolors="none",
                    edgecolors=COLOURS[i],
                    marker=MARKERS[i],
                    label=f"{method}, validation, by rate",
                )
        axis.set_xlabel("reward that is climbed")
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=7)
    figure.suptitle("What climbing a reward does to what it does not see")
    return save_figure(figure, folder / name)
