"""The exact judge of the shapes world: finds and names every object of a picture.

The ground is nearly grey and the objects are saturated, so chroma separates them. A connected region is split where it
holds several colours and the parts look more like shapes than the whole does: two touching objects are two, one whose
colour shifts is one. Its soft outline, brought to unit area around its centroid, is compared with every shape at
rotations from -15 to 15 degrees; the greatest overlap (soft intersection over union) names it. The judge reads pixels
only, and is never used as a reward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..metrics.geneval_rules import Detection
from .drawing import distance_table
from .vocabulary import COLOURS, HUES, SHAPES

_CHROMA = 0.28  # between the ground's (at most 0.1) and half of an object's (at least 0.58)
_LEAST_AREA = 18  # pixels; the smallest object drawn covers about 60
_FRAME = 24  # side of the normalised outline
_REACH = 1.25  # half the frame's extent, in units of sqrt(area)
_ROTATIONS = range(-15, 16, 5)
#: Overlap with the best shape that gives confidence 0 and 1; drawn objects overlap by 0.88 or more.
_OVERLAPS = (0.55, 0.85)

Plane = NDArray[np.float32]


def _normalise(alpha: Plane) -> Tensor:
    """Resample a soft mask (H, W) around its centroid at unit area; (24, 24)."""
    total = float(alpha.sum())
    ys, xs = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
    cx, cy = float((alpha * xs).sum() / total), float((alpha * ys).sum() / total)
    axis = torch.linspace(-_REACH, _REACH, _FRAME) * math.sqrt(total)
    gx = (axis + cx + 0.5) / alpha.shape[1] * 2 - 1
    gy = (axis + cy + 0.5) / alpha.shape[0] * 2 - 1
    grid = torch.stack(torch.meshgrid(gx, gy, indexing="xy"), -1)
    return F.grid_sample(torch.from_numpy(alpha)[None, None], grid[None], align_corners=False)[0, 0]


@functools.cache
def _templates() -> Tensor:
    """Normalised outlines of all shapes at all rotations, softened as at 12 pixels' radius; (8 * 7, 576)."""
    grid = torch.linspace(-1.5, 1.5, 36)
    gx, gy = torch.meshgrid(grid, grid, indexing="xy")
    outlines = []
    for shape in SHAPES:
        for degrees in _ROTATIONS:
            c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            local = torch.stack([c * gx + s * gy, c * gy - s * gx], -1) / 1.5
            table = distance_table(shape)[None, None]
            d = F.grid_sample(table, local[None], align_corners=True, padding_mode="border")[0, 0]
            outlines.append(_normalise((0.5 - 12 * d).clamp(0, 1).numpy()))
    return torch.stack(outlines).flatten(1)


def _hue(rgb: Plane) -> Plane:
    """Hue in degrees of pixels (..., 3)."""
    high, low = rgb.max(-1), rgb.min(-1)
    spread = np.maximum(high - low, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(high == r, (g - b) / spread, np.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread))
    return np.asarray(60 * hue % 360, np.float32)


def _nearest_colour(hue: Plane) -> NDArray[np.intp]:
    centres = np.array([HUES[c] for c in COLOURS], np.float32)
    away = np.abs((hue[..., None] - centres + 180) % 360 - 180)
    return away.argmin(-1)


@dataclass(frozen=True)
class _Region:
    """Connected pixels (H, W) taken for one object, and its colour's index."""

    pixels: NDArray[np.bool_]
    colour: int


def _readings(chroma: Plane, colours: NDArray[np.intp]) -> Iterator[list[list[_Region]]]:
    """Yield, for every connected region, the ways to read it: as one object, and as one object of each colour in it."""
    labels, count = ndimage.label(chroma > _CHROMA, structure=np.ones((3, 3)))
    for label in range(1, count + 1):
        region = labels == label
        area = int(region.sum())
        if area < _LEAST_AREA:
            continue
        votes = np.bincount(colours[region], minlength=len(COLOURS))
        readings = [[_Region(region, int(votes.argmax()))]]
        parts = []
        for colour in map(int, np.flatnonzero(votes >= max(_LEAST_AREA, 0.2 * area))):
            # Opening drops the thin rims in which two neighbours' colours mix into a third.
            core = ndimage.binary_opening(region & (colours == colour), structure=np.ones((2, 2)))
            pieces, n = ndimage.label(core)
            sizes = np.bincount(pieces.ravel())[1:]
            parts += [(pieces == i + 1, colour) for i in range(n) if sizes[i] >= max(_LEAST_AREA, 0.15 * area)]
        if len({colour for _, colour in parts}) > 1:
            # Every pixel of the region goes to the nearest part.
            marks = np.zeros(region.shape, np.int64)
            for i, (part, _) in enumerate(parts):
                marks[part] = i + 1
            nearest = ndimage.distance_transform_edt(marks == 0, return_distances=False, return_indices=True)
            owner = marks[tuple(nearest)]
            readings.append([_Region(region & (owner == i + 1), colour) for i, (_, colour) in enumerate(parts)])
        yield readings


def _name(region: _Region, chroma: Plane, ground: float) -> tuple[Detection, float]:
    """Return a region's detection and how well its outline agrees with the shape it is taken for, in [0, 1]."""
    full = float(np.quantile(chroma[region.pixels], 0.8))
    others = (chroma > _CHROMA) & ~region.pixels
    near = ndimage.binary_dilation(region.pixels, iterations=2) & ~ndimage.binary_dilation(others)
    alpha = np.clip((chroma - ground) / max(full - ground, 1e-3), 0, 1) * (near | region.pixels)
    outline, templates = _normalise(alpha.astype(np.float32)).flatten(), _templates()
    overlap = torch.minimum(outline, templates).sum(-1) / torch.maximum(outline, templates).sum(-1)
    score, index = (float(x) for x in overlap.max(0))
    low, high = _OVERLAPS
    ys, xs = np.nonzero(region.pixels)
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    confidence = min(1.0, max(0.0, (score - low) / (high - low)))
    return Detection(SHAPES[int(index) // len(_ROTATIONS)], COLOURS[region.colour], confidence, box), score


def _find(picture: Plane) -> list[Detection]:
    """Return the objects of a picture (H, W, 3).

    Of the ways to read a region, the one whose outlines agree best with shapes is taken: two objects that touch are
    two, and one object whose colour shifts from red to pink is one.
    """
    chroma = np.asarray(picture.max(-1) - picture.min(-1), np.float32)
    ground = float(np.median(np.concatenate([chroma[0], chroma[-1], chroma[:, 0], chroma[:, -1]])))
    colours = _nearest_colour(_hue(picture))
    found: list[Detection] = []
    for readings in _readings(chroma, colours):
        named = [[_name(region, chroma, ground) for region in reading] for reading in readings]
        areas = [[float(region.pixels.sum()) for region in reading] for reading in readings]
        fits = [float(np.average([score for _, score in n], weights=a)) for n, a in zip(named, areas, strict=True)]
        found += [detection for detection, _ in named[int(np.argmax(fits))]]
    return found


def judge(pictures: Tensor) -> list[list[Detection]]:
    """Find and name the objects of pictures.

    Args:
        pictures: (N, 3, H, W) in [0, 1].

    Returns:
        For each picture its objects, the most confident first. Confidence is 1 where the outline agrees with a shape
        as well as a drawn one does, and 0 where it agrees with none.
    """
    planes = pictures.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [sorted(_find(picture), key=lambda d: -d.confidence) for picture in planes]


def exact(detections: Sequence[Detection], objects: Sequence[tuple[str, str]]) -> bool:
    """Say whether the confident detections are exactly these (shape, colour) objects."""
    return sorted((d.name, d.colour) for d in detections if d.confidence >= 0.3) == sorted(objects)
