r"""Do masks move? The bits of a layer over timesteps, and how far sets of switched-off weights overlap.

With :math:`D` and :math:`D'` the weights that two masks switch off, the overlap is Jaccard's
:math:`|D \cap D'| / |D \cup D'|`. Kept sets of sparse masks overlap almost wholly whatever they do, so what is switched
off is compared. Bits are kept packed, and only those of a few steps.

Reference: the paper's analysis of masks (v stays over timesteps; q, k and out move).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..metrics.intervals import Estimate, student
from ..operators import pack_bits, unpack_bits
from ..plotting import COLOURS, MARKERS, new_mosaic, show_picture
from ..targets import LayerSpec
from .base import Analysis, brief, row
from .context import Subject, chosen
from .layer_names import projection_of, projections_of, short_name
from .mask_stream import sets_of_samples, stream_masks

_TITLE = "Do masks move over timesteps and between samples: does v stay while q, k and out change?"
_STEPS = 6  # steps that are compared
_SIDE = 256  # pixels a side of a layer's bits in the plot


class Overlaps:
    """Sizes of intersections of switched-off sets, added up over the layers of a projection.

    Args:
        steps: T steps that are compared.
        samples: N pictures.
    """

    def __init__(self, steps: int, samples: int) -> None:
        self.over_time = torch.zeros(samples, steps, steps, dtype=torch.float64)
        self.over_samples = torch.zeros(steps, samples, samples, dtype=torch.float64)
        #: What the intersections would be if every layer dropped as many weights, independently.
        self.chance_time = torch.zeros_like(self.over_time)
        self.chance_samples = torch.zeros_like(self.over_samples)

    def add(self, off: Tensor) -> None:
        """Add a layer, boolean (T, N, weights)."""
        sizes = off.sum(2, dtype=torch.float64)
        for n in range(off.shape[1]):
            bits = off[:, n].float()
            self.over_time[n] += (bits @ bits.T).double()
            self.chance_time[n] += torch.outer(sizes[:, n], sizes[:, n]) / off.shape[2]
        for t in range(off.shape[0]):
            bits = off[t].float()
            self.over_samples[t] += (bits @ bits.T).double()
            self.chance_samples[t] += torch.outer(sizes[t], sizes[t]) / off.shape[2]

    def between_timesteps(self) -> Tensor:
        """Return the overlap of each two steps, by picture, (N, T, T); NaN where both switch off nothing."""
        return _jaccard(self.over_time, self.over_time)

    def between_samples(self) -> Tensor:
        """Return the overlap of each two pictures, by step, (T, N, N)."""
        return _jaccard(self.over_samples, self.over_samples)

    def by_chance(self) -> tuple[float, float]:
        """Return the mean overlaps of independent sets of these sizes: between timesteps, between pictures."""
        time = _jaccard(self.chance_time, self.over_time)
        samples = _jaccard(self.chance_samples, self.over_samples)
        return float(_pairs(time).nanmean()), float(_pairs(samples).nanmean())


def _jaccard(both: Tensor, own: Tensor) -> Tensor:
    sizes = own.diagonal(dim1=1, dim2=2)
    return both / (sizes[:, :, None] + sizes[:, None, :] - both)


def _pairs(matrices: Tensor) -> Tensor:
    """Mean of each matrix over pairs of different entries, (B,)."""
    size = matrices.shape[1]
    pairs = list(combinations(range(size), 2))
    return (
        torch.stack([matrices[:, i, j] for i, j in pairs], 1).nanmean(1)
        if pairs
        else matrices.new_full((1,), torch.nan)
    )


def _finite(values: Tensor) -> Estimate:
    values = values[values.isfinite()]
    return student(values) if len(values) else Estimate(*[float("nan")] * 3)


def study(subject: Subject) -> Analysis:
    """Collect bits of some steps while the subject's pictures are drawn, and compare them.

    Raises:
        DataError: no masked layer of that name.
    """
    layers = {layer.name: layer for layer in subject.masker.network.layers}
    wanted = subject.settings.layer
    if wanted is not None and wanted not in layers:
        some = ", ".join(list(layers)[:3])
        raise DataError(f"expected the name of a masked layer, as {some}, got {wanted!r}")
    count = len(subject.texts)
    packed: dict[tuple[str, int, int], Tensor] = {}
    calls = chosen(subject.calls, _STEPS)

    def see(pictures: list[int], call: int, name: str, masks: Tensor) -> None:
        if call not in calls:
            return
        sets, which = sets_of_samples(masks, len(pictures))
        small = [pack_bits(s) for s in sets]
        for picture, k in zip(pictures, which, strict=True):
            packed[name, calls.index(call), picture] = small[k]

    every = stream_masks(subject, see)
    timesteps = [every[c] for c in calls]
    overlaps = {p: Overlaps(len(calls), count) for p in projections_of(list(layers.values()))}
    dropped: dict[str, float] = {}
    for name, layer in layers.items():
        off = _unpacked(packed, layer, len(calls), count)
        overlaps[projection_of(name)].add(off)
        dropped[name] = float(off.float().mean())
    shown = layers[wanted or max(dropped, key=lambda name: _contrast(dropped[name]))]
    bits = _unpacked(packed, shown, len(calls), 1)[:, 0].reshape(len(calls), *shown.shape)
    return Analysis(
        "masks",
        _TITLE,
        _answer(overlaps),
        _rows(overlaps, timesteps),
        subject.record(layer_shown=shown.name, compared_timesteps=timesteps),
        lambda: _draw(overlaps, timesteps, _thumbnail(bits), shown, subject),
    )


def _contrast(share: float) -> float:
    return min(share, 1 - share)


def _unpacked(packed: dict[tuple[str, int, int], Tensor], layer: LayerSpec, steps: int, count: int) -> Tensor:
    rows = [unpack_bits(packed[layer.name, t, n], (layer.weights,)) for t in range(steps) for n in range(count)]
    return torch.stack(rows).reshape(steps, count, layer.weights)


def _thumbnail(bits: Tensor) -> Tensor:
    """Share that is off, (T, H, W), a pixel a weight where the layer is small enough."""
    flat = bits.reshape(len(bits), 1, bits.shape[1], -1).float()
    height, width = (min(_SIDE, s) for s in flat.shape[2:])
    return F.adaptive_avg_pool2d(flat, (height, width))[:, 0]


def _rows(overlaps: dict[str, Overlaps], timesteps: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for name, found in overlaps.items():
        over_time, over_samples = found.between_timesteps(), found.between_samples()
        chances = found.by_chance()
        for what, values, chance in (
            ("between timesteps", _pairs(over_time), chances[0]),
            ("between samples", _others(over_samples), chances[1]),
        ):
            rows.append(row(f"overlap {what}", _finite(values), "Jaccard", projection=name))
            rows.append(row(f"overlap {what}, by chance", chance, "Jaccard", projection=name))
        for i, j in combinations(range(len(timesteps)), 2):
            pair = {"timestep": timesteps[i], "other_timestep": timesteps[j]}
            rows.append(
                row("overlap of two timesteps", _finite(over_time[:, i, j]), "Jaccard", projection=name, **pair)
            )
    return rows


def _others(matrices: Tensor) -> Tensor:
    """Mean overlap of each picture with the others, over steps, (N,)."""
    size = matrices.shape[1]
    if size < 2:
        return matrices.new_full((1,), torch.nan)
    other = ~torch.eye(size, dtype=torch.bool)
    return torch.stack([matrices[:, n, other[n]].nanmean() for n in range(size)])


def _answer(overlaps: dict[str, Overlaps]) -> str:
    time = {p: _finite(_pairs(o.between_timesteps())) for p, o in overlaps.items()}
    samples = {p: _finite(_others(o.between_samples())) for p, o in overlaps.items()}
    if not any(e.value == e.value for e in time.values()):
        return "Nothing is switched off at the compared steps, or at one step only, so there is nothing to compare."
    words = []
    for p, e in time.items():
        text = f"{p} {e.value:.2f} between timesteps (chance {overlaps[p].by_chance()[0]:.2f})"
        text += "" if samples[p].value != samples[p].value else f" and {samples[p].value:.2f} between samples"
        words.append(text if e.value == e.value else f"{p} none, it switches nothing off")
    text = f"Overlap (Jaccard) of the switched-off sets: {'; '.join(words)}"
    if gaps := _gaps_of_v(overlaps):
        stays, moves = all(e.low > 0 for e in gaps.values()), all(e.high < 0 for e in gaps.values())
        verdict = "v stays more than the others" if stays else "v moves more than the others" if moves else ""
        text += f": {verdict or 'v is between the others or level with them'} between timesteps"
        text += f" (v minus {', minus '.join(p + ' ' + brief(e, '+.2f') for p, e in gaps.items())})"
    return text + "."


def _gaps_of_v(overlaps: dict[str, Overlaps]) -> dict[str, Estimate]:
    """Overlap between timesteps of v minus that of each other projection, paired by picture; empty without v."""
    means = {p: _pairs(o.between_timesteps()) for p, o in overlaps.items()}
    found = {p: _finite(means["v"] - values) for p, values in means.items() if p != "v" and "v" in means}
    return {p: e for p, e in found.items() if e.value == e.value}


def _draw(
    overlaps: dict[str, Overlaps], timesteps: Sequence[float], bits: Tensor, shown: LayerSpec, subject: Subject
) -> Any:
    # A row of bits, a row of matrices, two panels of means.
    steps, names = len(timesteps), list(overlaps)[:4]
    width = 12
    layout = [_spread("abcdef"[:steps], width), _spread("ghij"[: len(names)], width), _spread("kl", width)]
    figure, axes = new_mosaic(";".join(layout), width=0.95, heights=(2.1, 2.6, 2.5))
    for letter, picture, t in zip("abcdef", bits, timesteps, strict=False):
        show_picture(axes[letter], picture.numpy(), f"t = {t:g}", cmap="cividis", vmin=0, vmax=1)
    axes["a"].set_ylabel(f"{short_name(shown.name)}\n(yellow: off)\nrows: outputs", fontsize=7)
    for letter, name in zip("ghij", names, strict=False):
        _matrix(figure, axes[letter], overlaps[name].between_timesteps().nanmean(0), timesteps, name, letter == "g")
    for letter, values, which, title in (
        ("k", {p: _finite(_pairs(o.between_timesteps())) for p, o in overlaps.items()}, 0, "between two timesteps"),
        ("l", {p: _finite(_others(o.between_samples())) for p, o in overlaps.items()}, 1, "between two samples"),
    ):
        _means(axes[letter], values, {p: o.by_chance()[which] for p, o in overlaps.items()}, title)
    axes["k"].legend(fontsize=8, loc="best")
    return figure


def _spread(letters: str, width: int) -> str:
    """Letters over a row of so many columns; a rest stays free."""
    return "".join(letter * (width // len(letters)) for letter in letters).ljust(width, ".")


def _matrix(figure: Any, axis: Any, values: Tensor, timesteps: Sequence[float], name: str, first: bool) -> None:
    labels = [f"{t:g}" for t in timesteps]
    image = axis.imshow(values.numpy(), cmap="cividis", vmin=0, vmax=1)
    axis.grid(False)
    axis.set_xticks(range(len(labels)), labels, fontsize=6, rotation=90)
    axis.set_yticks(range(len(labels)), labels, fontsize=6)
    axis.set_title(f"{name}: overlap of two timesteps", fontsize=8)
    if first:
        axis.set_ylabel("timestep", fontsize=7)
        figure.colorbar(image, ax=axis, shrink=0.7, location="left")


def _means(axis: Any, values: dict[str, Estimate], chance: dict[str, float], title: str) -> None:
    for i, (name, e) in enumerate(values.items()):
        axis.errorbar(
            i, e.value, yerr=[[e.value - e.low], [e.high - e.value]], color=COLOURS[i], marker=MARKERS[i], capsize=4
        )
        axis.plot(
            [i - 0.3, i + 0.3], [chance[name]] * 2, color="black", linestyle=":", label="by chance" if i == 0 else None
        )
    axis.set_xticks(range(len(values)), list(values))
    axis.set_xlim(-0.5, len(values) - 0.5)
    axis.set_ylim(0, 1)
    axis.set_ylabel("Jaccard of switched-off sets")
    axis.set_title(title, fontsize=9)
