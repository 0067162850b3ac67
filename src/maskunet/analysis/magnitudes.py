"""Are large weights switched off too? Removed against kept magnitudes, and mask ratios by size, at each step.

Sizes are compared inside a layer: tenths of its weights by magnitude, and magnitudes over the layer's root mean square.
A pruning method would switch off small weights; the paper's masks are said to take large ones as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..metrics.intervals import student
from ..plotting import COLOURS, band, new_mosaic
from ..targets import maskable_layers, unet_of
from .base import Analysis, percent, row
from .context import Subject, chosen
from .mask_stream import sets_of_samples, stream_masks

_TITLE = "Are large weights switched off too?"
_TENTHS = 10
_LEVEL = 0.1  # differences below this share of the mask ratio count as none
#: Edges of the histogram: magnitude over the layer's root mean square, on a logarithmic scale.
EDGES = torch.logspace(-3, 1, 41)


def tenths(weight: Tensor) -> Tensor:
    """Return for each weight which tenth of the layer it belongs to by magnitude, 0 (smallest) to 9; uint8, flat."""
    order = weight.detach().float().cpu().abs().flatten().argsort(stable=True)
    found = torch.empty(len(order), dtype=torch.uint8)
    found[order] = (torch.arange(len(order)) * _TENTHS // len(order)).to(torch.uint8)
    return found


def bins(weight: Tensor) -> Tensor:
    """Return for each weight its bin of the histogram, 0 to len(EDGES) with what lies outside; uint8, flat."""
    size = weight.detach().float().cpu().abs().flatten()
    return torch.bucketize(size / size.square().mean().sqrt().clamp_min(1e-12), EDGES).to(torch.uint8)


def study(subject: Subject) -> Analysis:
    """Count what is switched off by magnitude while the subject's pictures are drawn."""
    modules = maskable_layers(unet_of(subject.pipe))
    names = [layer.name for layer in subject.masker.network.layers]
    places: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        places[name] = tenths(weight), bins(weight)
    total = sum((_count(p[0], _TENTHS) for p in places.values()), torch.zeros(_TENTHS))
    everything = sum((_count(p[1], len(EDGES) + 1) for p in places.values()), torch.zeros(len(EDGES) + 1))
    calls, count = subject.calls, len(subject.texts)
    by_size = torch.zeros(calls, count, _TENTHS)
    histogram = torch.zeros(len(EDGES) + 1, dtype=torch.float64)

    def see(pictures: list[int], call: int, name: str, masks: Tensor) -> None:
        sets, which = sets_of_samples(masks, len(pictures))
        tenth, place = places[name]
        found = torch.stack([_count(tenth[s], _TENTHS) for s in sets])
        by_size[call, pictures] += found[which]
        times = torch.bincount(torch.tensor(which), minlength=len(sets))
        for s, repeats in zip(sets, times.tolist(), strict=True):
            histogram.add_(repeats * _count(place[s], len(EDGES) + 1))

    timesteps = stream_masks(subject, see)
    return Analysis(
        "weights",
        _TITLE,
        _answer(by_size, total),
        _rows(by_size, total, timesteps, histogram, everything * len(timesteps) * count),
        subject.record(weights=int(total.sum())),
        lambda: _draw(by_size, total, timesteps, histogram, everything * len(timesteps) * count),
    )


def _count(places: Tensor, length: int) -> Tensor:
    return torch.bincount(places.int(), minlength=length).float()


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
    for what, counts in (("removed", histogram), ("kept", everything - histogram)):
        share = counts / counts.sum().clamp_min(1)
        rows += [
            row(f"magnitudes of {what} weights", float(s), "share of them", up_to_rms=round(float(edge), 5))
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
    # Over many pictures a difference of no weight is soon a sure one.
    if abs(gap.value) < _LEVEL * every.value or gap.low <= 0 <= gap.high:
        verdict = "about as often as small ones"
    else:
        verdict = f"{'more' if gap.value > 0 else 'less'} often than small ones"
    return (
        f"Of the largest tenth of each layer's weights {percent(large, 2)} are switched off, of the smallest "
        f"{percent(small, 2)}, of all {percent(every, 2)}: large weights go too, {verdict} (difference {percent(gap, 2)})."
    )


def _draw(by_size: Tensor, total: Tensor, timesteps: list[float], histogram: Tensor, everything: Tensor) -> Any:
    import matplotlib as mpl

    figure, axes = new_mosaic("ABC", width=4.4, heights=(3.6,))
    steps = chosen(len(timesteps), 5)
    shades = [mpl.colors.to_hex(c) for c in mpl.colormaps["cividis"]([0.0, 0.25, 0.5, 0.75, 0.95])]
    for i, k in enumerate(steps):
        found = [student(r) for r in (by_size[k] / total * 100).T]
        bounds = [[getattr(e, key) for e in found] for key in ("value", "low", "high")]
        band(axes["A"], range(1, _TENTHS + 1), *bounds, number=i, label=f"t = {timesteps[k]:g}", colour=shades[i])
    axes["A"].set_xticks(range(1, _TENTHS + 1))
    axes["A"].set_xlabel("tenth of a layer's weights by |w| (10: largest)")
    axes["A"].set_title("by magnitude, at chosen timesteps", fontsize=9)
    for number, (values, label) in enumerate(
        (
            (by_size[:, :, -1] / total[-1], "largest tenth"),
            (by_size.sum(2) / total.sum(), "all weights"),
            (by_size[:, :, 0] / total[0], "smallest tenth"),
        )
    ):
        found = [student(r * 100) for r in values]
        bounds = [[getattr(e, key) for e in found] for key in ("value", "low", "high")]
        band(axes["B"], timesteps, *bounds, number=number, label=label, markevery=max(1, len(timesteps) // 8))
    axes["B"].invert_xaxis()
    axes["B"].set_xlabel("timestep (noise left, picture right)")
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
    axis.set_ylabel("share of these weights (% a bin)")
    axis.set_title("sizes of kept and switched-off weights", fontsize=9)
    axis.legend(fontsize=8, loc="upper left")
