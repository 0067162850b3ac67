"""The comparison of masks and LoRA trained by a reward, as tables and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.records import half_width, markdown_table, mean_text, over_runs, share_text, without_chance_task
from benchmarks.studies.report import CHANCE_NOTE
from maskunet.plotting import COLOURS, MARKERS, new_figure, save_figure


def amortised_markdown(record: dict[str, Any]) -> str:
    """Return the test cells over training seeds, accuracy by task, and every learning rate on validation prompts.

    Args:
        record: from `run_amortised`.
    """
    config, all_cells, selected = record["config"], record["cells"], record["selected"]
    base = all_cells["base"][0]
    rows = []
    for name, cells in all_cells.items():
        overall = [c["accuracy"]["overall"] for c in cells]
        densities = [c["density"] for c in cells if c["density"] is not None]
        rows.append(
            [
                name,
                f"{selected[name]:g}" if name in selected else None,
                mean_text([c["reward"] for c in cells]),
                mean_text([c["referee"] for c in cells]),
                share_text(overall),
                None if name == "base" else mean_text([o - base["accuracy"]["overall"] for o in overall]),
                share_text([without_chance_task(c["accuracy"]) for c in cells]),
                mean_text([c["fid"]["clip"] for c in cells]),
                mean_text([c["fid"]["vae"] for c in cells]),
                f"{sum(densities) / len(densities):.4f}" if densities else None,
            ]
        )
    tasks = list(base["accuracy"])
    by_task = [[n, *(share_text([c["accuracy"][t] for c in cells]) for t in tasks)] for n, cells in all_cells.items()]
    validation = [("base", None, record["validation"]["base"])]
    validation += [(name, rate, cell) for name in selected for rate, cell in record["validation"][name].items()]
    rates = [
        [
            name,
            rate,
            f"{c['reward']:.3f}",
            f"{c['referee']:.3f}",
            f"{c['accuracy']['overall']:.3f}",
            f"{c['fid']['clip']:.2f}",
        ]
        for name, rate, c in validation
    ]
    columns = [
        "method",
        "rate",
        "reward",
        "referee",
        "overall",
        "minus base",
        "without position",
        "FID, CLIP",
        "FID, VAE",
    ]
    columns.append("density")
    return "\n\n".join(
        [
            f"{config['steps']} steps with {config['reward_batch_size']} rewarded samples each; {config['prompts']} test "
            f"prompts, {config['num_inference_steps']} DPM-Solver++ steps, guidance {config['guidance_scale']:g}, the same "
            f"noise for all. Optimised reward: `{config['reward']}`, weight {config['reward_weight']:g}. Brackets: "
            f"Student's 95 % interval over {config['seeds']} training seeds, for these prompts and noises; no brackets: the "
            f"seeds agree. The referee is another reward, trained separately. {CHANCE_NOTE}",
            markdown_table(columns, rows),
            markdown_table(["method", *tasks], by_task),
            "Learning rates on validation prompts, one seed; the judge selects.",
            markdown_table(["method", "rate", "reward", "referee", "overall", "FID, CLIP"], rates),
        ]
    )


def plot_amortised(record: dict[str, Any], folder: Path, name: str = "amortised") -> list[Path]:
    """Draw judge and referee against the optimised reward; return the figure's path.

    Args:
        record: from `run_amortised`.
        folder: output folder.
        name: name of the figure, without its suffix.
    """
    figure, axes = new_figure(1, 2)
    panels = ((lambda c: c["accuracy"]["overall"], "judge, overall"), (lambda c: c["referee"], "referee"))
    for axis, (value, label) in zip(axes[0], panels, strict=True):
        for i, (method, cells) in enumerate(record["cells"].items()):
            x, y = [c["reward"] for c in cells], [value(c) for c in cells]
            axis.errorbar(
                over_runs(x).value,
                over_runs(y).value,
                half_width(y),
                half_width(x),
                capsize=3,
                color=COLOURS[i],
                marker=MARKERS[i],
                label=f"{method}, test",
            )
            if method in record["selected"]:
                by_rate = record["validation"][method].values()
                axis.scatter(
                    [c["reward"] for c in by_rate],
                    [value(c) for c in by_rate],
                    facecolors="none",
                    edgecolors=COLOURS[i],
                    marker=MARKERS[i],
                    label=f"{method}, validation, by rate",
                )
        axis.set_xlabel("optimised reward")
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=7)
    figure.suptitle("Judge and referee against the optimised reward")
    return save_figure(figure, folder / f"{name}.png", ["png"])
