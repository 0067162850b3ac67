"""Quality against network calls, as a table and the figure of the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.records import machine_line, markdown_table
from benchmarks.studies.guidance import GUIDED, PLAIN
from maskunet.plotting import COLOURS, MARKERS, new_figure, save_figure
from maskunet.shapes.scenes import held_out_prompts


def _mean(rows: list[dict[str, Any]], calls: str, key: str) -> float:
    return sum(row[calls][key] for row in rows) / len(rows)


def _difference(rows: list[dict[str, Any]], calls: str, key: str) -> str | None:
    """The paired difference of the first training seed, with its interval."""
    if key not in rows[0][calls]:
        return None
    value, low, high = rows[0][calls][key]
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def guidance_markdown(record: dict[str, Any]) -> str:
    """Return accuracy and FID by side and network calls, with differences to guidance.

    Args:
        record: from `run_guidance`.
    """
    config, cells = record["config"], record["cells"]
    distinct = len({prompt.prompt for prompt in held_out_prompts(config["prompts"], "test")})
    calls = [str(c) for c in config["calls"]]
    rows = [
        [name, *(f"{_mean(side, c, 'right'):.3f} / {_mean(side, c, 'fid'):.2f}" for c in calls)]
        for name, side in cells.items()
    ]
    trained = {name: side for name, side in cells.items() if name not in (GUIDED, PLAIN)}
    differences = [
        [name, c, _difference(side, c, "equal"), _difference(side, c, "twice")]
        for name, side in trained.items()
        for c in calls
    ]
    spread = [
        [
            name,
            len(runs),
            f"{runs[0]['parameters']:,}",
            " ".join(f"{run['density']:.4f}" for run in runs) if "density" in runs[0] else None,
            " ".join(f"{cells[name][i]['10']['right']:.3f}" for i in range(len(runs))) if "10" in calls else None,
        ]
        for name, runs in record["training"].items()
    ]
    scales = [
        [scale, *(f"{cell['right']:.3f} / {cell['fid']:.2f}" for cell in row.values())]
        for scale, row in record["validation"].items()
    ]
    validation_calls = list(next(iter(record["validation"].values())))
    return "\n\n".join(
        [
            f"Share of right images (mean of six tasks, by the judge) and FID (bundled CLIP) by network calls per image; "
            f"{config['prompts']} test prompts ({distinct} distinct), the same noise for all sides, DPM-Solver++; "
            f"{machine_line(record['machine'])}. A guided step costs two calls (scale {record['scale']:g}, the best on "
            f"validation prompts); every other side costs one and imitates scale {config['guidance_scale']:g} after "
            f"{config['steps']} steps of {config['train_batch_size']} samples. Training seeds: {config['seeds']}. "
            "Rates and starts of the trained sides come from trials on other draws of the test combinations, so those sides "
            "may look slightly better than they are.",
            markdown_table(["side", *(f"{c} calls" for c in calls)], rows),
            "Paired differences in the share of right images to guidance, first training seed, 95 % interval over "
            "distinct prompts.",
            markdown_table(
                ["side", "calls", "minus guidance, same calls", "minus guidance, twice the calls"], differences
            ),
            "Training.",
            markdown_table(["side", "seeds", "parameters", "density", "right at 10 calls, by seed"], spread),
            f"Guidance by scale on {config['validation_prompts']} validation prompts.",
            markdown_table(["scale", *(f"{c} calls" for c in validation_calls)], scales),
        ]
    )


def plot_guidance(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draw accuracy and FID against network calls; return the figure's path.

    Args:
        record: from `run_guidance`.
        folder: output folder.
    """
    calls = record["config"]["calls"]
    figure, axes = new_figure(1, 2)
    for axis, key, label in zip(axes[0], ("right", "fid"), ("share of right images", "FID (CLIP space)"), strict=True):
        for i, (name, rows) in enumerate(record["cells"].items()):
            values = [_mean(rows, str(c), key) for c in calls]
            style = "--" if name in (GUIDED, PLAIN) else "-"
            axis.plot(calls, values, style, color=COLOURS[i], marker=MARKERS[i], label=name, linewidth=1.5)
        axis.set_xscale("log")
        axis.set_xticks(calls, [str(c) for c in calls])
        axis.minorticks_off()
        axis.set_xlabel("network calls per image")
        axis.set_ylabel(label)
    axes[0, 1].set_yscale("log")
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(f"Quality against network calls ({record['config']['prompts']} test prompts)")
    return save_figure(figure, folder / "guidance.png", ["png"])
