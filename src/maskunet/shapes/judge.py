"""The exact judge of the shapes world: finds and names every object of a picture.

The ground is nearly grey and the objects are saturated, so chroma separates them. A connected region is split where it
holds several colours. Its soft outline, brought to unit area around its centroid, is compared with every shape at
rotations from -15 to 15 degrees; the greatest overlap (soft intersection over union) names it. The judge reads pixels
only, and is never used as a reward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..metrics.geneval import Detection
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


def _regions(chroma: Plane, colours: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """Yield the pixels and the colour of every object."""
    labels, count = ndimage.label(chroma > _CHROMA, structure=np.ones((3, 3)))
    for label in range(1, count + 1):
        region = labels == label
        area = int(region.sum())
        if area < _LEAST_AREA:
            continue
        votes = np.bincount(colours[region], minlength=len(COLOURS))
        parts = []
        for colour in map(int, np.flatnonzero(votes >= max(_LEAST_AREA, 0.2 * area))):
            # Opening drops the thin rims in which two neighbours' colours mix into a third.
            core = ndimage.binary_opening(region & (colours == colour), structure=np.ones((2, 2)))
            pieces, n = ndimage.label(core)
            sizes = np.bincount(pieces.ravel())[1:]
            parts += [(pieces == i + 1, colour) for i in range(n) if sizes[i] >= max(_LEAST_AREA, 0.15 * area)]
        if len({colour for _, colour in parts}) <= 1:
            yield region, int(votes.argmax())
            continue
        # Every pixel of the region goes to the nearest part.
        marks = np.zeros(region.shape, np.int64)
        for i, (part, _) in enumerate(parts):
            marks[part] = i + 1
        nearest = ndimage.distance_transform_edt(marks == 0, return_distances=False, return_indices=True)
        owner = marks[tuple(nearest)]
        for i, (_, colour) in enumerate(parts):
            yield region & (owner == i + 1), colour


def _find(picture: Plane) -> tuple[list[Tensor], list[tuple[str, tuple[float, float, float, float]]]]:
    """Return the normalised outlines, colours and boxes of a picture's (H, W, 3) objects."""
    chroma = np.asarray(picture.max(-1) - picture.min(-1), np.float32)
    ground = float(np.median(np.concatenate([chroma[0], chroma[-1], chroma[:, 0], chroma[:, -1]])))
    colours = _nearest_colour(_hue(picture))
    outlines, found = [], []
    for region, colour in _regions(chroma, colours):
        full = float(np.quantile(chroma[region], 0.8))
        others = (chroma > _CHROMA) & ~region
        near = ndimage.binary_dilation(region, iterations=2) & ~ndimage.binary_dilation(others)
        alpha = np.clip((chroma - ground) / max(full - ground, 1e-3), 0, 1) * (near | region)
        ys, xs = np.nonzero(region)
        outlines.append(_normalise(alpha.astype(np.float32)))
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        found.append((COLOURS[colour], box))
    return outlines, found


def judge(pictures: Tensor) -> list[list[Detection]]:
    """Find and name the objects of pictures.

    Args:
        pictures: (N, 3, H, W) in [0, 1].

    Returns:
        For each picture its objects, the most confident first. Confidence is 1 where the outline agrees with a shape
        as well as a drawn one does, and 0 where it agrees with none.
    """
    templates = _templates()
    answers: list[list[Detection]] = []
    for picture in pictures.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy():
        outlines, found = _find(picture)
        detections = []
        if outlines:
            flat = torch.stack(outlines).flatten(1)[:, None]
            overlap = torch.minimum(flat, templates).sum(-1) / torch.maximum(flat, templates).sum(-1)
            best, which = overlap.max(1)
            low, high = _OVERLAPS
            for score, index, (colour, box) in zip(best.tolist(), which.tolist(), found, strict=True):
                confidence = min(1.0, max(0.0, (score - low) / (high - low)))
                detections.append(Detection(SHAPES[index // len(_ROTATIONS)], colour, confidence, box))
        answers.append(sorted(detections, key=lambda d: -d.confidence))
    return answers


def exact(detections: Sequence[Detection], objects: Sequence[tuple[str, str]]) -> bool:
    """Say whether the confident detections are exactly these (shape, colour) objects."""
    return sorted((d.name, d.colour) for d in detections if d.confidence >= 0.3) == sorted(objects)
