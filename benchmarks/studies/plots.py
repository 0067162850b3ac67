"""Figures of the tables: what methods learn against what they cost, differences to the base, masks over training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.ablations import REFERENCE
from benchmarks.studies.report import half_width, seeds_of
from maskunet.plotting import COLOURS, MARKERS, error_bars, log_ticks, new_figure, save_figure


def plot_table1(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `table1_rates` and `table1_differences`.

    Args:
        result: what `reproduce_table1` returned.
        folder: where to.
    """
    config, cells = result["config"], result["cells"]
    figure, axes = new_figure(1, 2)
    measures = ((("fid", "clip"), "FID on the first world (CLIP space)"), (("accuracy", "overall"), "judge, overall"))
    for axis, ((group, key), label) in zip(axes[0], measures, strict=True):
        for i, (name, rates) in enumerate(result["rates"].items()):
            ordered = [rates[r] for r in sorted(rates, key=float)]
            x, y = [c["art_gain"] for c in ordered], [c[group][key] for c in ordered]
            axis.plot(x, y, color=COLOURS[i], marker=MARKERS[i], label=name, linewidth=1)
        axis.set_xlabel("gain on held-out art (diffusion loss)")
        axis.set_ylabel(label)
    log_ticks(axes[0, 0])
    axes[0, 1].legend()  # where curves fall a corner is free
    n = config["validation_prompts"]
    figure.suptitle(f"What each method learns, and what it costs: every rate tried (validation, n = {n}, seed 0)")
    written = save_figure(figure, folder / "table1_rates")

    names = [name for name in cells if name not in ("base", "random masks")]
    figure, axes = new_figure(1, 2)
    for axis, ((group, key), label) in zip(axes[0], measures, strict=True):
        groups = [
            [a[group][key] - b[group][key] for a, b in zip(cells[name], cells["base"], strict=True)] for name in names
        ]
        error_bars(axis, names, groups, half_widths=[half_width(g) for g in groups])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{label}, minus base")
    pictures = config["prompts"] * config["pictures"]
    figure.suptitle(f"Difference to the base, paired ({config['seeds']} training seeds x {pictures} pictures, 95 %)")
    return written + save_figure(figure, folder / "table1_differences")


def plot_ablations(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `ablations_variants` and `ablations_training`.

    Args:
        result: what `reproduce_ablations` returned.
        folder: where to.
    """
    config, cells = result["config"], result["cells"]
    names = [name for name in cells if name != "base"]
    figure, axes = new_figure(1, 3)
    for axis, (keys, label) in zip(
        axes[0],
        (
            (("art_gain",), "gain on held-out art (diffusion loss)"),
            (("fid", "clip"), "FID on the first world (CLIP space)"),
            (("density",), "density"),
        ),
        strict=True,
    ):
        groups = [[_value(c, keys) for c in cells[name]] for name in names]
        error_bars(axis, names, groups, half_widths=[half_width(g) for g in groups])
        axis.set_xlabel(label)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    figure.suptitle(
        f"Conditioning and layers ({seeds_of(config)}, {config['prompts']} pictures each"
        + (", 95 %)" if config["seeds"] > 1 else ")")
    )
    written = save_figure(figure, folder / "ablations_variants")

    figure, axes = new_figure(1, 2)
    curve = cells[REFERENCE][0]["curve"]
    steps = [0, *(c["step"] for c in curve)]
    axes[0, 0].plot(steps, [0.0, *(100 * (1 - c["density"]) for c in curve)], color=COLOURS[0], marker=MARKERS[0])
    axes[0, 0].set_ylabel("weights switched off (%)")
    shots = result["snapshots"]
    axes[0, 1].plot([s["step"] for s in shots], [s["fid"]["clip"] for s in shots], color=COLOURS[1], marker=MARKERS[1])
    axes[0, 1].set_ylabel("FID on the first world (CLIP space)")
    for axis in axes[0]:
        axis.set_xlabel("training step on the art domain")
    figure.suptitle(f"Mask ratio and FID over training (seed 0, {config['prompts']} pictures a point)")
    return written + save_figure(figure, folder / "ablations_training")


def _value(cell: dict[str, Any], keys: tuple[str, ...]) -> float:
    value: Any = cell
    for key in keys:
        value = value[key]
    return float(value)
