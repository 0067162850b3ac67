"""Where pictures lie: base, masked and real ones in a space of features, shown in two dimensions.

The two axes are the principal components of the real pictures, so that the plot is not drawn for the generated ones.
They show part of the variance only; the Frechet distances beside them are those of the whole space.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attaching.attachment import disabled
from ..errors import DataError
from ..evaluation.features import load_features
from ..evaluation.folder import image_files, read_images
from ..metrics.distances import frechet_distance
from ..metrics.intervals import Estimate, student
from ..plotting import COLOURS, MARKERS, new_mosaic
from .base import Analysis, brief, row
from .bundled_reference import bundled_features, bundled_reference, frechet_gap
from .context import Subject

_TITLE = "Do masks bring pictures closer to real ones?"
_REFERENCE = 1200  # real pictures of the bundled world
SIDES = ("base", "masked")


@dataclass
class Spaces:
    """Features of the three sets.

    Args:
        base, masked: (N, D), from the same prompts and noise.
        real: (M, D).
        held: real pictures that are no part of `real`, as many as N where there are enough, (K, D).
        name: the feature space.
    """

    base: Tensor
    masked: Tensor
    real: Tensor
    held: Tensor
    name: str


def study(subject: Subject) -> Analysis:
    """Draw the subject's pictures on both sides and embed them beside real ones.

    Raises:
        DataError: no reference or features, and the model is not the bundled one; or too few pictures.
    """
    count = len(subject.texts)
    if count < 3:
        raise DataError(
            f"expected at least 3 pictures a side for a distance, got {count}; give --count or more prompts"
        )
    name, features, real = _world(subject)
    if len(real) < 6:
        raise DataError(f"expected at least 6 real pictures, got {len(real)}; give a larger --reference")
    sides = {}
    for k, side in enumerate(SIDES):
        with disabled(subject.pipe) if side == "base" else contextlib.nullcontext():
            sides[side] = features(subject.pictures(f"{side} pictures", (k / 2, (k + 1) / 2)))
    held = min(count, len(real) // 2)
    spaces = Spaces(sides["base"], sides["masked"], real[held:], real[:held], name)
    axes, share = principal_axes(spaces.real)
    gap = frechet_gap(spaces.base, spaces.masked, spaces.real)
    return Analysis(
        "samples",
        _TITLE,
        _answer(spaces, gap, share),
        _rows(spaces, gap, axes, share),
        subject.record("reference", "resolution", features=name, real_pictures=len(real)),
        lambda: _draw(spaces, gap, axes, share),
    )


def principal_axes(real: Tensor) -> tuple[Tensor, float]:
    """Return the two directions of greatest variance, (D, 2), and the share of the variance that they show.

    Args:
        real: features (M, D).
    """
    values, vectors = torch.linalg.eigh(torch.cov(real.double().T))
    axes = vectors[:, -2:].flip(1)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # an axis has no direction of its own
    return (axes * signs).float(), float(values[-2:].sum() / values.sum())


def _world(subject: Subject) -> tuple[str, Any, Tensor]:
    """Name of the feature space, features of pictures, and features of real pictures."""
    s, bundled = subject.settings, subject.requirements is not None
    if not bundled and (s.reference is None or s.features is None):
        raise DataError(
            "expected a folder of real pictures and features (--reference, --features clip:SOURCE, dinov2:SOURCE or "
            "inception); only the bundled model with its own prompts has its own"
        )
    side = s.resolution or (64 if bundled else 256)
    space = None if s.features is None else load_features(s.features, subject.pipe.unet.device)

    def features(pictures: Tensor) -> Tensor:
        return bundled_features(pictures) if space is None else torch.cat([space(p) for p in pictures.split(64)])

    if s.reference is None:
        name = s.features or "the bundled CLIP"
        return name, features, bundled_reference(_REFERENCE) if space is None else features(_real_pictures())
    batches = read_images(image_files(Path(s.reference)), side)
    return s.features or "the bundled CLIP", features, torch.cat([features(b) for b in batches])


def _real_pictures() -> Tensor:
    from ..shapes.drawing import draw
    from ..shapes.scenes import held_out_scenes

    return draw(held_out_scenes(_REFERENCE))


def _moves(spaces: Spaces) -> Estimate:
    """How far masks move a picture, over the mean distance of two base pictures."""
    return student((spaces.masked - spaces.base).norm(dim=1) / torch.pdist(spaces.base).mean())


def _distances(spaces: Spaces) -> dict[str, float]:
    named = {"base": spaces.base, "masked": spaces.masked, "real, held apart": spaces.held}
    return {name: frechet_distance(x, spaces.real) for name, x in named.items()}


def _rows(spaces: Spaces, gap: Estimate, axes: Tensor, share: float) -> list[dict[str, Any]]:
    unit = f"FID, {spaces.name}"
    rows = [row("Frechet distance to real pictures", v, unit, side=name) for name, v in _distances(spaces).items()]
    rows.append(row("masked minus base", gap, unit, side="masked - base"))
    rows.append(
        row("move of a picture", _moves(spaces), "of the mean distance of two base pictures", side="masked - base")
    )
    rows.append(row("variance shown by two axes", share, "share", side="real"))
    for side in ("real", *SIDES):
        for i, (x, y) in enumerate((getattr(spaces, side) @ axes).tolist()):
            keys = {"side": side, "picture": i}
            rows += [row("first axis", x, "features", **keys), row("second axis", y, "features", **keys)]
    return rows


def _answer(spaces: Spaces, gap: Estimate, share: float) -> str:
    verdict = "neither closer nor farther for sure"
    if gap.high < 0:
        verdict = "closer"
    elif gap.low > 0:
        verdict = "farther"
    d = _distances(spaces)
    moves = _moves(spaces)
    apart = d["real, held apart"]
    return (
        f"{verdict.capitalize()}: Frechet distance to real pictures {d['masked']:.2f} masked and {d['base']:.2f} base "
        f"(difference {gap:+.2f}), where {len(spaces.held)} real pictures held apart have {apart:.2f}; masks move a "
        f"picture by {brief(moves)} of the mean distance of two pictures (the plot's axes show {100 * share:.0f} % of the "
        "real variance)."
    )


def _draw(spaces: Spaces, gap: Estimate, axes: Tensor, share: float) -> Any:
    figure, panels = new_mosaic("AAB", width=3.6, heights=(5.0,))
    axis = panels["A"]
    real, base, masked = (getattr(spaces, side) @ axes for side in ("real", *SIDES))
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
    axis.set_xlabel("first principal component of the real pictures")
    axis.set_ylabel("second principal component")
    axis.set_title(f"{spaces.name}; both axes show {100 * share:.0f} % of the variance", fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.16 * (high - low))  # room for the legend
    axis.legend(fontsize=8, ncols=2, loc="upper center")
    axis = panels["B"]
    distances = _distances(spaces)
    for i, value in enumerate(distances.values()):
        axis.bar(i, value, color=(COLOURS[0], COLOURS[1], "#BBBBBB")[i], width=0.6)
        axis.text(i, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(distances)), [name.replace(", ", ",\n") for name in distances])
    axis.set_ylabel("Frechet distance to real pictures")
    axis.set_title(f"masked minus base {gap:+.2f}", fontsize=9)
    return figure
