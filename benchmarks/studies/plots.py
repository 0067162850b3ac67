"""Figures of Table 1 and the ablations: gain against cost, differences to the base, masks during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.records import half_width
from benchmarks.studies.ablations import REFERENCE
from benchmarks.studies.report import seeds_text, value_at
from maskunet.plotting import COLOURS, MARKERS, error_bars, log_ticks, new_figure, save_figure


def plot_table1(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `table1_rates.png` and `table1_differences.png`; return their paths.

    Args:
        record: from `run_table1`.
        folder: output folder.
    """
    config, cells = record["config"], record["cells"]
    figure, axes = new_figure(1, 2)
    measures = ((("fid", "clip"), "FID on the first domain (CLIP space)"), (("accuracy", "overall"), "judge, overall"))
    for axis, (keys, label) in zip(axes[0], measures, strict=True):
        for i, (name, rates) in enumerate(record["rates"].items()):
            ordered = [rates[r] for r in sorted(rates, key=float)]
            x, y = [c["art_gain"] for c in ordered], [value_at(c, *keys) for c in ordered]
            axis.plot(x, y, color=COLOURS[i], marker=MARKERS[i], label=name, linewidth=1)
        axis.set_xlabel("gain on held-out art (diffusion loss)")
        axis.set_ylabel(label)
    log_ticks(axes[0, 0])
    axes[0, 1].legend()  # the curves fall, so this corner is free
    n = config["validation_prompts"]
    figure.suptitle(f"Gain and cost of each method at every learning rate (validation, n = {n}, seed 0)")
    written = save_figure(figure, folder / "table1_rates.png", ["png"])

    names = [name for name in cells if name not in ("base", "random masks")]
    figure, axes = new_figure(1, 2)
    for axis, (keys, label) in zip(axes[0], measures, strict=True):
        groups = [
            [value_at(a, *keys) - value_at(b, *keys) for a, b in zip(cells[name], cells["base"], strict=True)]
            for name in names
        ]
        error_bars(axis, names, groups, half_widths=[half_width(g) for g in groups])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{label}, minus base")
    images = config["prompts"] * config["images_per_prompt"]
    figure.suptitle(f"Difference to the base, paired ({config['seeds']} training seeds x {images} images, 95 %)")
    return written + save_figure(figure, folder / "table1_differences.png", ["png"])


def plot_ablations(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `ablations_variants.png` and `ablations_training.png`; return their paths.

    Args:
        record: from `run_ablations`.
        folder: output folder.
    """
    config, cells = record["config"], record["cells"]
    names = [name for name in cells if name != "base"]
    figure, axes = new_figure(1, 3)
    measures = (
        (("art_gain",), "gain on held-out art (diffusion loss)"),
        (("fid", "clip"), "FID on the first domain (CLIP space)"),
        (("density",), "density"),
    )
    for axis, (keys, label) in zip(axes[0], measures, strict=True):
        groups = [[value_at(c, *keys) for c in cells[name]] for name in names]
        error_bars(axis, names, groups, half_widths=[half_width(g) for g in groups])
        axis.set_xlabel(label)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    interval = ", 95 %" if config["seeds"] > 1 else ""
    figure.suptitle(f"Conditioning and layers ({seeds_text(config)}, {config['prompts']} images each{interval})")
    written = save_figure(figure, folder / "ablations_variants.png", ["png"])

    figure, axes = new_figure(1, 2)
    curve = cells[REFERENCE][0]["curve"]
    steps = [0, *(c["step"] for c in curve)]
    ratios = [0.0, *(100 * (1 - c["density"]) for c in curve)]
    axes[0, 0].plot(steps, ratios, color=COLOURS[0], marker=MARKERS[0])
    axes[0, 0].set_ylabel("mask ratio (%)")
    snapshots = record["snapshots"]
    distances = [s["fid"]["clip"] for s in snapshots]
    axes[0, 1].plot([s["step"] for s in snapshots], distances, color=COLOURS[1], marker=MARKERS[1])
    axes[0, 1].set_ylabel("FID on the first domain (CLIP space)")
    for axis in axes[0]:
        axis.set_xlabel("training step on the art domain")
    figure.suptitle(f"Mask ratio and FID during training (seed 0, {config['prompts']} images per point)")
    return written + save_figure(figure, folder / "ablations_training.png", ["png"])
