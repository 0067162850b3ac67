"""Base, masked and real images in a feature space, shown in two dimensions.

The axes are the principal components of the real images, so that they do not favour the generated ones. They show part of
the variance only; the Fréchet distances beside them are measured in the whole space.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attaching import disabled
from ..errors import SettingError
from ..evaluation.comparison import SIDES
from ..evaluation.features import load_features
from ..evaluation.image_reader import image_files, read_images
from ..metrics.distances import frechet_distance
from ..metrics.intervals import Estimate, student
from ..plotting import COLOURS, MARKERS, new_mosaic
from ..zoo.defaults import RESOLUTION
from .base import Analysis, format_estimate, row
from .bundled_reference import bundled_features, bundled_images, frechet_gap
from .context import AnalysisContext

_TITLE = "Do masks bring images closer to real ones?"
_REFERENCE = 1200  # real images of the bundled world


@dataclass
class FeatureSets:
    """Features of the sets of images.

    Args:
        base: (N, D).
        masked: (N, D), from the same prompts and noise.
        real: (M, D).
        held_out: real images that are not in `real`, at most N, (K, D).
        name: name of the feature space.
    """

    base: Tensor
    masked: Tensor
    real: Tensor
    held_out: Tensor
    name: str


def study(context: AnalysisContext) -> Analysis:
    """Generate the context's images on both sides and embed them beside real ones.

    Args:
        context: the images.

    Raises:
        SettingError: reference or features are missing, and the model is not the bundled one; or too few images.
    """
    count = len(context.prompts)
    if count < 3:
        raise SettingError(
            f"expected at least 3 images per side for a distance, got {count}; pass a larger count (--count) or more prompts"
        )
    name, features, real = _world(context)
    if len(real) < 6:
        raise SettingError(f"expected at least 6 real images, got {len(real)}; pass a larger reference (--reference)")
    sides = {}
    for k, side in enumerate(SIDES):
        with disabled(context.pipe) if side == "base" else contextlib.nullcontext():
            sides[side] = features(context.generate(f"{side} images", (k / 2, (k + 1) / 2)))
    held_out = min(count, len(real) // 2)
    sets = FeatureSets(sides["base"], sides["masked"], real[held_out:], real[:held_out], name)
    axes, share = principal_axes(sets.real)
    gap = frechet_gap(sets.base, sets.masked, sets.real)
    return Analysis(
        "samples",
        _TITLE,
        _answer(sets, gap, share),
        _rows(sets, gap, axes, share),
        context.record("reference", "resolution", features=name, real_images=len(real)),
        lambda: _draw(sets, gap, axes, share),
    )


def principal_axes(real: Tensor) -> tuple[Tensor, float]:
    """Return the two directions of greatest variance, (D, 2), and their share of the variance.

    Args:
        real: features (M, D).
    """
    values, vectors = torch.linalg.eigh(torch.cov(real.double().T))
    axes = vectors[:, -2:].flip(1)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # the sign of an eigenvector is arbitrary
    return (axes * signs).float(), float(values[-2:].sum() / values.sum())


def _world(context: AnalysisContext) -> tuple[str, Any, Tensor]:
    """Return the name of the feature space, a function that computes features, and features of real images."""
    s, bundled = context.settings, context.requirements is not None
    if not bundled and (s.reference is None or s.features is None):
        raise SettingError(
            "expected a folder of real images and features (--reference, --features clip:SOURCE, dinov2:SOURCE or "
            "inception); only the bundled model with its own prompts has defaults"
        )
    resolution = s.resolution or (RESOLUTION if bundled else 256)
    space = None if s.features is None else load_features(s.features, context.pipe.unet.device)

    def features(images: Tensor) -> Tensor:
        return bundled_features(images) if space is None else torch.cat([space(x) for x in images.split(64)])

    if s.reference is None:
        return s.features or "the bundled CLIP", features, features(bundled_images(_REFERENCE))
    batches = read_images(image_files(Path(s.reference)), resolution)
    return s.features or "the bundled CLIP", features, torch.cat([features(b) for b in batches])


def _moves(sets: FeatureSets) -> Estimate:
    """Return how far masks move an image, relative to the mean distance between two base images."""
    return student((sets.masked - sets.base).norm(dim=1) / torch.pdist(sets.base).mean())


def _distances(sets: FeatureSets) -> dict[str, float]:
    named = {"base": sets.base, "masked": sets.masked, "real, held out": sets.held_out}
    return {name: frechet_distance(x, sets.real) for name, x in named.items()}


def _rows(sets: FeatureSets, gap: Estimate, axes: Tensor, share: float) -> list[dict[str, Any]]:
    unit = f"FID, {sets.name}"
    rows = [row("Frechet distance to real images", v, unit, side=name) for name, v in _distances(sets).items()]
    rows.append(row("masked minus base", gap, unit, side="masked - base"))
    rows.append(
        row("move of an image", _moves(sets), "of the mean distance between two base images", side="masked - base")
    )
    rows.append(row("variance shown by two axes", share, "share", side="real"))
    for side in ("real", *SIDES):
        for measure, values in zip(
            ("first axis", "second axis"), (getattr(sets, side) @ axes).T.tolist(), strict=True
        ):
            rows += [row(measure, value, "features", side=side, image=i) for i, value in enumerate(values)]
    return rows


def _answer(sets: FeatureSets, gap: Estimate, share: float) -> str:
    verdict = "Masks bring images neither measurably closer to real ones nor farther away"
    if gap.high < 0:
        verdict = "Masks bring images closer to real ones"
    elif gap.low > 0:
        verdict = "Masks take images farther away from real ones"
    distances = _distances(sets)
    return (
        f"{verdict}: their Fréchet distance is {distances['masked']:.2f} with masks and {distances['base']:.2f} without "
        f"(difference {gap:+.2f}); {len(sets.held_out)} held-out real images have {distances['real, held out']:.2f}. Masks "
        f"move an image by {format_estimate(_moves(sets))} of the mean distance between two images. The plot's axes show "
        f"{100 * share:.0f} % of the variance of real images."
    )


def _draw(sets: FeatureSets, gap: Estimate, axes: Tensor, share: float) -> Any:
    figure, panels = new_mosaic("AAB", width=3.6, heights=(5.0,))
    axis = panels["A"]
    real, base, masked = (getattr(sets, side) @ axes for side in ("real", *SIDES))
    axis.plot(*real.T.numpy(), ".", color="#BBBBBB", markersize=3, label=f"real ({len(real)})", zorder=1)
    for start, end in zip(base.tolist(), masked.tolist(), strict=True):
        axis.plot([start[0], end[0]], [start[1], end[1]], color="#777777", linewidth=0.6, zorder=2)
    for number, (name, points) in enumerate((("base", base), ("masked", masked))):
        style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none"}
        axis.plot(*points.T.numpy(), markersize=3.5, label=f"{name} ({len(points)})", zorder=3, **style)
        hollow = {"markersize": 15 - 4 * number, "markerfacecolor": "none", "markeredgewidth": 2.5, "zorder": 5}
        axis.plot(*points.mean(0).tolist(), **hollow, **style)
    axis.plot(
        *real.mean(0).tolist(),
        "*",
        color="black",
        markersize=6,
        zorder=6,
        label="mean of real; hollow: of base, masked",
    )
    axis.set_xlabel("first principal component of the real images")
    axis.set_ylabel("second principal component")
    axis.set_title(f"{sets.name}; both axes show {100 * share:.0f} % of the variance", fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.16 * (high - low))  # room for the legend
    axis.legend(fontsize=8, ncols=2, loc="upper center")
    axis = panels["B"]
    distances = _distances(sets)
    for i, value in enumerate(distances.values()):
        axis.bar(i, value, color=(COLOURS[0], COLOURS[1], "#BBBBBB")[i], width=0.6)
        axis.text(i, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(distances)), [name.replace(", ", ",\n") for name in distances])
    axis.set_ylabel("Frechet distance to real images")
    axis.set_title(f"masked minus base {gap:+.2f}", fontsize=9)
    return figure
