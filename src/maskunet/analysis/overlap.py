r"""Do masks change? The bits of a layer over timesteps, and the overlap of sets of switched-off weights.

For the sets :math:`D` and :math:`D'` of weights that two masks switch off, the overlap is Jaccard's
:math:`|D \cap D'| / |D \cup D'|`. The kept sets of sparse masks overlap almost completely in any case, so the switched-off
sets are compared. Bits are stored packed, and only those of a few steps.

Reference: the paper's analysis of masks (v is stable over timesteps; q, k and out change).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError
from ..metrics.intervals import Estimate, student
from ..network import LayerSpec
from ..operators import pack_bits, unpack_bits
from ..plotting import COLOURS, MARKERS, new_mosaic, show_image
from .base import Analysis, format_estimate, row
from .context import AnalysisContext, evenly_spaced
from .layer_names import projection_name, projection_names, short_name
from .mask_stream import masks_by_prompt, stream_masks

_TITLE = "Do masks change over timesteps and between images, and is v more stable than q, k and out?"
_STEPS = 6  # compared steps
_SIDE = 256  # pixels per side of a layer's bits in the plot


class Overlaps:
    """Sizes of intersections of switched-off sets, summed over the layers of a projection.

    Args:
        steps: T compared steps.
        images: N images.
    """

    def __init__(self, steps: int, images: int) -> None:
        self.over_time = torch.zeros(images, steps, steps, dtype=torch.float64)
        self.over_images = torch.zeros(steps, images, images, dtype=torch.float64)
        #: Expected intersections if every layer dropped the same number of weights independently.
        self.chance_time = torch.zeros_like(self.over_time)
        self.chance_images = torch.zeros_like(self.over_images)

    def add(self, off: Tensor) -> None:
        """Add a layer.

        Args:
            off: switched-off weights, boolean (T, N, weights).
        """
        sizes = off.sum(2, dtype=torch.float64)
        for n in range(off.shape[1]):
            bits = off[:, n].float()
            self.over_time[n] += (bits @ bits.T).double()
            self.chance_time[n] += torch.outer(sizes[:, n], sizes[:, n]) / off.shape[2]
        for t in range(off.shape[0]):
            bits = off[t].float()
            self.over_images[t] += (bits @ bits.T).double()
            self.chance_images[t] += torch.outer(sizes[t], sizes[t]) / off.shape[2]

    def between_timesteps(self) -> Tensor:
        """Return the overlap of each two steps, by image, (N, T, T); NaN if both switch off nothing."""
        return _jaccard(self.over_time, self.over_time)

    def between_images(self) -> Tensor:
        """Return the overlap of each two images, by step, (T, N, N)."""
        return _jaccard(self.over_images, self.over_images)

    def by_chance(self) -> tuple[float, float]:
        """Return the mean overlaps of independent sets of the same sizes: between timesteps, between images."""
        time = _jaccard(self.chance_time, self.over_time)
        images = _jaccard(self.chance_images, self.over_images)
        return float(_pairs(time).nanmean()), float(_pairs(images).nanmean())


def _jaccard(intersections: Tensor, measured: Tensor) -> Tensor:
    sizes = measured.diagonal(dim1=1, dim2=2)
    return intersections / (sizes[:, :, None] + sizes[:, None, :] - intersections)


def _pairs(matrices: Tensor) -> Tensor:
    """Return the mean of each matrix over pairs of different entries, (B,)."""
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


def study(context: AnalysisContext) -> Analysis:
    """Collect the bits of some steps while the context's images are generated, and compare them.

    Args:
        context: the images.

    Raises:
        SettingError: no masked layer has that name.
    """
    layers = {layer.name: layer for layer in context.masker.network.layers}
    requested = context.settings.layer
    if requested is not None and requested not in layers:
        examples = ", ".join(list(layers)[:3])
        raise SettingError(f"expected the name of a masked layer, such as {examples}, got {requested!r}")
    count = len(context.prompts)
    packed: dict[tuple[str, int, int], Tensor] = {}
    calls = evenly_spaced(context.unet_calls, _STEPS)

    def on_mask(images: list[int], call: int, name: str, masks: Tensor) -> None:
        if call not in calls:
            return
        sets, set_of = masks_by_prompt(masks, len(images))
        packed_sets = [pack_bits(s) for s in sets]
        for image, k in zip(images, set_of, strict=True):
            packed[name, calls.index(call), image] = packed_sets[k]

    all_timesteps = stream_masks(context, on_mask)
    timesteps = [all_timesteps[c] for c in calls]
    overlaps = {p: Overlaps(len(calls), count) for p in projection_names(list(layers.values()))}
    dropped: dict[str, float] = {}
    for name, layer in layers.items():
        off = _unpacked(packed, layer, len(calls), count)
        overlaps[projection_name(name)].add(off)
        dropped[name] = float(off.float().mean())
    shown = layers[requested or max(dropped, key=lambda name: _contrast(dropped[name]))]
    bits = _unpacked(packed, shown, len(calls), 1)[:, 0].reshape(len(calls), *shown.shape)
    return Analysis(
        "masks",
        _TITLE,
        _answer(overlaps),
        _rows(overlaps, timesteps),
        context.record(layer_shown=shown.name, compared_timesteps=timesteps),
        lambda: _draw(overlaps, timesteps, _thumbnail(bits), shown, context),
    )


def _contrast(share: float) -> float:
    return min(share, 1 - share)


def _unpacked(packed: dict[tuple[str, int, int], Tensor], layer: LayerSpec, steps: int, count: int) -> Tensor:
    rows = [unpack_bits(packed[layer.name, t, n], (layer.weights,)) for t in range(steps) for n in range(count)]
    return torch.stack(rows).reshape(steps, count, layer.weights)


def _thumbnail(bits: Tensor) -> Tensor:
    """Return the share that is off, (T, H, W); one pixel per weight if the layer is small enough."""
    flat = bits.reshape(len(bits), 1, bits.shape[1], -1).float()
    height, width = (min(_SIDE, s) for s in flat.shape[2:])
    return F.adaptive_avg_pool2d(flat, (height, width))[:, 0]


def _rows(overlaps: dict[str, Overlaps], timesteps: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for name, overlap in overlaps.items():
        over_time, over_images = overlap.between_timesteps(), overlap.between_images()
        chances = overlap.by_chance()
        for kind, values, chance in (
            ("between timesteps", _pairs(over_time), chances[0]),
            ("between images", _others(over_images), chances[1]),
        ):
            rows.append(row(f"overlap {kind}", _finite(values), "Jaccard", projection=name))
            rows.append(row(f"overlap {kind}, by chance", chance, "Jaccard", projection=name))
        for i, j in combinations(range(len(timesteps)), 2):
            pair = {"timestep": timesteps[i], "other_timestep": timesteps[j]}
            rows.append(
                row("overlap of two timesteps", _finite(over_time[:, i, j]), "Jaccard", projection=name, **pair)
            )
    return rows


def _others(matrices: Tensor) -> Tensor:
    """Return the mean overlap of each image with the others, over steps, (N,)."""
    size = matrices.shape[1]
    if size < 2:
        return matrices.new_full((1,), torch.nan)
    other = ~torch.eye(size, dtype=torch.bool)
    return torch.stack([matrices[:, n, other[n]].nanmean() for n in range(size)])


def _answer(overlaps: dict[str, Overlaps]) -> str:
    time = {p: _finite(_pairs(o.between_timesteps())).value for p, o in overlaps.items()}
    images = {p: _finite(_others(o.between_images())).value for p, o in overlaps.items()}
    if all(map(math.isnan, time.values())):
        return "The masks switch off nothing at the compared steps, or at one step only: there is nothing to compare."
    texts = {}
    for number, (name, values) in enumerate((("timesteps", time), ("images", images))):
        parts = [
            f"{p} {value:.2f} (chance {overlaps[p].by_chance()[number]:.2f})"
            for p, value in values.items()
            if not math.isnan(value)
        ]
        if parts:
            texts[name] = f"between {name} {', '.join(parts)}"
    text = f"Jaccard overlap of the switched-off sets: {'; '.join(texts.values())}."
    unmasked = [p for p, value in time.items() if math.isnan(value)]
    text += f" Nothing is switched off in {', '.join(unmasked)}." if unmasked else ""
    if gaps := _gaps_of_v(overlaps):
        verdict = "is not clearly the most or the least stable projection"
        if all(gap.low > 0 for gap in gaps.values()):
            verdict = "changes least"
        elif all(gap.high < 0 for gap in gaps.values()):
            verdict = "changes most"
        minus = ", ".join(f"minus {p} {format_estimate(gap, '+.2f')}" for p, gap in gaps.items())
        text += f" Over timesteps, v {verdict} (overlap of v {minus})."
    return text


def _gaps_of_v(overlaps: dict[str, Overlaps]) -> dict[str, Estimate]:
    """Return v's overlap between timesteps minus each other projection's, paired by image; empty without v."""
    means = {p: _pairs(o.between_timesteps()) for p, o in overlaps.items()}
    gaps = {p: _finite(means["v"] - values) for p, values in means.items() if p != "v" and "v" in means}
    return {p: gap for p, gap in gaps.items() if not math.isnan(gap.value)}


def _draw(
    overlaps: dict[str, Overlaps], timesteps: Sequence[float], bits: Tensor, shown: LayerSpec, context: AnalysisContext
) -> Any:
    # One row of bits, one of matrices, one of means.
    steps, names = len(timesteps), list(overlaps)[:4]
    width = 12
    layout = [_spread("abcdef"[:steps], width), _spread("ghij"[: len(names)], width), _spread("kl", width)]
    figure, axes = new_mosaic(";".join(layout), width=0.95, heights=(2.1, 2.6, 2.5))
    for letter, image, t in zip("abcdef", bits, timesteps, strict=False):
        show_image(axes[letter], image.numpy(), f"t = {t:g}", cmap="cividis", vmin=0, vmax=1)
    axes["a"].set_ylabel(f"{short_name(shown.name)}\n(yellow: off)\nrows: outputs", fontsize=7)
    for letter, name in zip("ghij", names, strict=False):
        _matrix(figure, axes[letter], overlaps[name].between_timesteps().nanmean(0), timesteps, name, letter == "g")
    for letter, values, kind, title in (
        ("k", {p: _finite(_pairs(o.between_timesteps())) for p, o in overlaps.items()}, 0, "between two timesteps"),
        ("l", {p: _finite(_others(o.between_images())) for p, o in overlaps.items()}, 1, "between two images"),
    ):
        _means(axes[letter], values, {p: o.by_chance()[kind] for p, o in overlaps.items()}, title)
    axes["k"].legend(fontsize=8, loc="best")
    return figure


def _spread(letters: str, width: int) -> str:
    """Return a row of `width` columns in which every letter has the same share; the remainder stays empty."""
    return "".join(letter * (width // len(letters)) for letter in letters).ljust(width, ".")


def _matrix(figure: Any, axis: Any, values: Tensor, timesteps: Sequence[float], name: str, is_first: bool) -> None:
    labels = [f"{t:g}" for t in timesteps]
    image = axis.imshow(values.numpy(), cmap="cividis", vmin=0, vmax=1)
    axis.grid(False)
    axis.set_xticks(range(len(labels)), labels, fontsize=6, rotation=90)
    axis.set_yticks(range(len(labels)), labels, fontsize=6)
    axis.set_title(f"{name}: overlap of two timesteps", fontsize=8)
    if is_first:
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
