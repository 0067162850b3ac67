"""The exact judge of the shapes world: it finds and names every object of an image.

The ground is nearly grey and the objects are saturated, so chroma separates them. A connected region is split if it has
several colours and its parts look more like shapes than the region does: two touching objects are two, and an object whose
colour shifts is one. The soft outline of a region, scaled to unit area around its centroid, is compared with every shape at
rotations from -15 to 15 degrees; the greatest overlap (soft intersection over union) names it. The judge reads pixels only,
and is never used as a reward.
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
_MIN_AREA = 18  # pixels; the smallest object drawn covers about 60
_FRAME = 24  # side of the normalised outline, in pixels
_HALF_EXTENT = 1.25  # half the frame's extent, in units of sqrt(area)
_ROTATIONS = range(-15, 16, 5)
# Overlaps with the best shape at confidence 0 and 1; drawn objects overlap by 0.88 or more.
_OVERLAPS = (0.55, 0.85)

Array = NDArray[np.float32]


def _normalise(alpha: Array) -> Tensor:
    """Return a soft mask (H, W) resampled around its centroid at unit area: (24, 24)."""
    total = float(alpha.sum())
    ys, xs = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
    cx, cy = float((alpha * xs).sum() / total), float((alpha * ys).sum() / total)
    axis = torch.linspace(-_HALF_EXTENT, _HALF_EXTENT, _FRAME) * math.sqrt(total)
    gx = (axis + cx + 0.5) / alpha.shape[1] * 2 - 1
    gy = (axis + cy + 0.5) / alpha.shape[0] * 2 - 1
    grid = torch.stack(torch.meshgrid(gx, gy, indexing="xy"), -1)
    return F.grid_sample(torch.from_numpy(alpha)[None, None], grid[None], align_corners=False)[0, 0]


@functools.cache
def _templates() -> Tensor:
    """Return the normalised outlines (8 * 7, 576) of all shapes at all rotations, as soft as at a radius of 12 pixels."""
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


def _hue(rgb: Array) -> Array:
    """Return the hue in degrees of pixels (..., 3)."""
    high, low = rgb.max(-1), rgb.min(-1)
    spread = np.maximum(high - low, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(high == r, (g - b) / spread, np.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread))
    return np.asarray(60 * hue % 360, np.float32)


def _nearest_colour(hue: Array) -> NDArray[np.intp]:
    centres = np.array([HUES[c] for c in COLOURS], np.float32)
    distance = np.abs((hue[..., None] - centres + 180) % 360 - 180)
    return distance.argmin(-1)


@dataclass(frozen=True)
class _Region:
    """The pixels (H, W) of one object, and its colour's index."""

    pixels: NDArray[np.bool_]
    colour: int


def _segmentations(chroma: Array, colours: NDArray[np.intp]) -> Iterator[list[list[_Region]]]:
    """Yield the segmentations of every connected region: one object, and, if it has several colours, one per part."""
    labels, count = ndimage.label(chroma > _CHROMA, structure=np.ones((3, 3)))
    for label in range(1, count + 1):
        region = labels == label
        area = int(region.sum())
        if area < _MIN_AREA:
            continue
        votes = np.bincount(colours[region], minlength=len(COLOURS))
        segmentations = [[_Region(region, int(votes.argmax()))]]
        parts = []
        for colour in map(int, np.flatnonzero(votes >= max(_MIN_AREA, 0.2 * area))):
            # Opening drops the thin rims in which two neighbours' colours mix into a third.
            core = ndimage.binary_opening(region & (colours == colour), structure=np.ones((2, 2)))
            pieces, n = ndimage.label(core)
            sizes = np.bincount(pieces.ravel())[1:]
            parts += [(pieces == i + 1, colour) for i in range(n) if sizes[i] >= max(_MIN_AREA, 0.15 * area)]
        if len({colour for _, colour in parts}) > 1:
            # Every pixel of the region goes to the nearest part.
            marks = np.zeros(region.shape, np.int64)
            for i, (part, _) in enumerate(parts):
                marks[part] = i + 1
            nearest = ndimage.distance_transform_edt(marks == 0, return_distances=False, return_indices=True)
            owner = marks[tuple(nearest)]
            segmentations.append([_Region(region & (owner == i + 1), colour) for i, (_, colour) in enumerate(parts)])
        yield segmentations


def _classify(region: _Region, chroma: Array, ground: float) -> tuple[Detection, float]:
    """Return a region's detection, and the overlap of its outline with the detected shape, in [0, 1]."""
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


def _detect(image: Array) -> list[Detection]:
    """Return the objects of an image (H, W, 3).

    If a region can be split, the segmentation whose outlines agree best with shapes wins.
    """
    chroma = np.asarray(image.max(-1) - image.min(-1), np.float32)
    ground = float(np.median(np.concatenate([chroma[0], chroma[-1], chroma[:, 0], chroma[:, -1]])))
    colours = _nearest_colour(_hue(image))
    detections: list[Detection] = []
    for segmentations in _segmentations(chroma, colours):
        classified = [[_classify(region, chroma, ground) for region in regions] for regions in segmentations]
        areas = [[float(region.pixels.sum()) for region in regions] for regions in segmentations]
        fits = [
            float(np.average([score for _, score in n], weights=a)) for n, a in zip(classified, areas, strict=True)
        ]
        detections += [detection for detection, _ in classified[int(np.argmax(fits))]]
    return detections


def judge(images: Tensor) -> list[list[Detection]]:
    """Find and name the objects of images.

    Args:
        images: (N, 3, H, W) in [0, 1].

    Returns:
        N lists of objects, the most confident first. Confidence is 1 if the outline agrees with a shape as well as a drawn
        one does, and 0 if it agrees with none.
    """
    planes = images.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [sorted(_detect(image), key=lambda d: -d.confidence) for image in planes]


def is_exact(detections: Sequence[Detection], objects: Sequence[tuple[str, str]]) -> bool:
    """Return whether the confident detections are exactly the expected objects.

    Args:
        detections: the detections in one image.
        objects: the expected (shape, colour) pairs.
    """
    return sorted((d.name, d.colour) for d in detections if d.confidence >= 0.3) == sorted(objects)
