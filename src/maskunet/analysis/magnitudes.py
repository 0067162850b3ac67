"""Are large weights switched off too? Removed and kept magnitudes, and mask ratios by size, at each step.

Sizes are compared within a layer: tenths of its weights by magnitude, and magnitudes over the layer's root mean square.
A pruning method would switch off small weights; the paper reports that its masks remove large ones as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..metrics.intervals import student
from ..plotting import COLOURS, band, new_mosaic
from ..quantised import dense_weight
from ..targets import maskable_layers, unet_of
from .base import Analysis, format_percent, row
from .context import AnalysisContext, evenly_spaced
from .mask_stream import masks_by_prompt, stream_masks

_TITLE = "Are large weights switched off too?"
_TENTHS = 10
_LEVEL = 0.1  # differences below this share of the mask ratio count as none
#: Edges of the histogram: magnitude over the layer's root mean square, on a logarithmic scale.
EDGES = torch.logspace(-3, 1, 41)


def magnitude_tenths(weight: Tensor) -> Tensor:
    """Return each weight's tenth of the layer by magnitude, 0 (smallest) to 9; uint8, (weights,).

    Args:
        weight: the layer's weight, any shape.
    """
    order = weight.detach().float().cpu().abs().flatten().argsort(stable=True)
    tenths = torch.empty(len(order), dtype=torch.uint8)
    tenths[order] = (torch.arange(len(order)) * _TENTHS // len(order)).to(torch.uint8)
    return tenths


def magnitude_bins(weight: Tensor) -> Tensor:
    """Return each weight's bin of the histogram, 0 to len(EDGES), where the outer bins are open; uint8, (weights,).

    Args:
        weight: the layer's weight, any shape.
    """
    size = weight.detach().float().cpu().abs().flatten()
    return torch.bucketize(size / size.square().mean().sqrt().clamp_min(1e-12), EDGES).to(torch.uint8)


def study(context: AnalysisContext) -> Analysis:
    """Count switched-off weights by magnitude while the context's images are generated.

    Args:
        context: the images.
    """
    modules = maskable_layers(unet_of(context.pipe))
    names = [layer.name for layer in context.masker.network.layers]
    classes: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        weight = dense_weight(modules[name])
        classes[name] = magnitude_tenths(weight), magnitude_bins(weight)
    total = sum((_count(p[0], _TENTHS) for p in classes.values()), torch.zeros(_TENTHS))
    everything = sum((_count(p[1], len(EDGES) + 1) for p in classes.values()), torch.zeros(len(EDGES) + 1))
    calls, count = context.unet_calls, len(context.prompts)
    by_size = torch.zeros(calls, count, _TENTHS)
    histogram = torch.zeros(len(EDGES) + 1, dtype=torch.float64)

    def on_mask(images: list[int], call: int, name: str, masks: Tensor) -> None:
        sets, set_of = masks_by_prompt(masks, len(images))
        tenths, bins = classes[name]
        counts = torch.stack([_count(tenths[s], _TENTHS) for s in sets])
        by_size[call, images] += counts[set_of]
        uses = torch.bincount(torch.tensor(set_of), minlength=len(sets))
        for s, repeats in zip(sets, uses.tolist(), strict=True):
            histogram.add_(repeats * _count(bins[s], len(EDGES) + 1))

    timesteps = stream_masks(context, on_mask)
    return Analysis(
        "weights",
        _TITLE,
        _answer(by_size, total),
        _rows(by_size, total, timesteps, histogram, everything * len(timesteps) * count),
        context.record(weights=int(total.sum())),
        lambda: _draw(by_size, total, timesteps, histogram, everything * len(timesteps) * count),
    )


def _count(classes: Tensor, length: int) -> Tensor:
    return torch.bincount(classes.int(), minlength=length).float()


def _rows(
    by_size: Tensor, total: Tensor, timesteps: list[float], histogram: Tensor, everything: Tensor
) -> list[dict[str, Any]]:
    rows = []
    for tenth in range(_TENTHS):
        ratio = by_size[:, :, tenth] / total[tenth]
        keys = {"tenth": tenth + 1}
        rows.append(row("mask ratio by magnitude", student(ratio.mean(0)), "share", timestep="mean", **keys))
        rows += [
            row("mask ratio by magnitude", student(r), "share", timestep=t, **keys)
            for t, r in zip(timesteps, ratio, strict=True)
        ]
    for kind, counts in (("removed", histogram), ("kept", everything - histogram)):
        share = counts / counts.sum().clamp_min(1)
        rows += [
            row(f"magnitudes of {kind} weights", float(s), "share", up_to_rms=round(float(edge), 5))
            for edge, s in zip([*EDGES, float("inf")], share, strict=True)
        ]
    return rows


def _answer(by_size: Tensor, total: Tensor) -> str:
    if float(by_size.sum()) == 0:
        return "No weight is switched off, large or small."
    shares = (by_size / total).mean(0)
    large, small = student(shares[:, -1]), student(shares[:, 0])
    every = student(by_size.sum(2).mean(0) / total.sum())
    gap = student(shares[:, -1] - shares[:, 0])
    # With many images a negligible difference is soon a significant one.
    if abs(gap.value) < _LEVEL * every.value or gap.low <= 0 <= gap.high:
        verdict = "about as often as small ones"
    else:
        verdict = f"{'more' if gap.value > 0 else 'less'} often than small ones"
    return (
        f"Large weights are switched off too, {verdict}: {format_percent(large, '.2f')} of the largest tenth of each "
        f"layer's weights, {format_percent(small, '.2f')} of the smallest tenth, {format_percent(every, '.2f')} of all "
        f"(largest minus smallest: {format_percent(gap, '+.2f', 'points')})."
    )


def _draw(by_size: Tensor, total: Tensor, timesteps: list[float], histogram: Tensor, everything: Tensor) -> Any:
    import matplotlib as mpl

    figure, axes = new_mosaic("ABC", width=4.4, heights=(3.6,))
    steps = evenly_spaced(len(timesteps), 5)
    shades = [mpl.colors.to_hex(c) for c in mpl.colormaps["cividis"]([0.0, 0.25, 0.5, 0.75, 0.95])]
    for i, k in enumerate(steps):
        estimates = [student(r) for r in (by_size[k] / total * 100).T]
        bounds = [[getattr(e, key) for e in estimates] for key in ("value", "low", "high")]
        band(axes["A"], range(1, _TENTHS + 1), *bounds, number=i, label=f"t = {timesteps[k]:g}", colour=shades[i])
    axes["A"].set_xticks(range(1, _TENTHS + 1))
    axes["A"].set_xlabel("tenth of a layer's weights by |w| (10: largest)")
    axes["A"].set_title("by magnitude, at five timesteps", fontsize=9)
    for number, (values, label) in enumerate(
        (
            (by_size[:, :, -1] / total[-1], "largest tenth"),
            (by_size.sum(2) / total.sum(), "all weights"),
            (by_size[:, :, 0] / total[0], "smallest tenth"),
        )
    ):
        estimates = [student(r * 100) for r in values]
        bounds = [[getattr(e, key) for e in estimates] for key in ("value", "low", "high")]
        band(axes["B"], timesteps, *bounds, number=number, label=label, markevery=max(1, len(timesteps) // 8))
    axes["B"].invert_xaxis()
    axes["B"].set_xlabel("timestep (noise left, image right)")
    axes["B"].set_title("over timesteps", fontsize=9)
    for letter in "AB":
        axes[letter].set_ylabel("switched off (%)")
        axes[letter].set_ylim(0, 1.35 * axes[letter].get_ylim()[1])  # room for the legend
        axes[letter].legend(fontsize=8, ncols=3, loc="upper center")
    _histograms(axes["C"], histogram, everything - histogram)
    return figure


def _histograms(axis: Any, removed: Tensor, kept: Tensor) -> None:
    for number, (counts, label, style) in enumerate(((kept, "kept", "-"), (removed, "switched off", "--"))):
        share = counts[1:-1] / counts.sum().clamp_min(1) * 100
        axis.stairs(share.numpy(), EDGES.numpy(), color=COLOURS[number], linestyle=style, linewidth=1.6, label=label)
    axis.set_xscale("log")
    axis.set_xlim(1e-2, 10)
    axis.set_xlabel("|w| / root mean square of its layer")
    axis.set_ylabel("share of these weights (% per bin)")
    axis.set_title("sizes of kept and switched-off weights", fontsize=9)
    axis.legend(fontsize=8, loc="upper left")
