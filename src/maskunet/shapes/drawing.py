"""Draw scenes as images: anti-aliased signed distances, in the plain style or in the "art" style.

Every shape has a table of signed distances over [-1.5, 1.5]^2, in units of its radius, negative inside. An object is that
table scaled, rotated and moved; it covers `clamp(1/2 - distance in pixels, 0, 1)` of a pixel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError
from .layout import SIZE
from .scenes import Scene
from .vocabulary import COLOURS, HUES, SHAPES

STYLES = ("plain", "art")
_EXTENT = 1.5
_TABLE_SIZE = 160


def _polygon(points: Tensor, vertices: Tensor) -> Tensor:
    """Return the signed distances (H, W) of points (H, W, 2) to a simple polygon (V, 2)."""
    start, end = vertices, vertices.roll(-1, 0)
    edge = end - start
    offset = points[..., None, :] - start
    along = ((offset * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
    distance = (offset - along[..., None] * edge).norm(dim=-1).amin(-1)
    px, py = points[..., None, 0], points[..., None, 1]
    crosses = (start[:, 1] > py) != (end[:, 1] > py)
    height = torch.where(edge[:, 1] == 0, torch.ones_like(edge[:, 1]), edge[:, 1])
    left = px < start[:, 0] + edge[:, 0] * (py - start[:, 1]) / height
    inside = (crosses & left).sum(-1) % 2 == 1
    return torch.where(inside, -distance, distance)


def _outline(shape: str) -> Tensor:
    """Return the vertices (V, 2) of a polygonal shape, about within the unit circle, y down."""
    if shape == "square":
        return torch.tensor([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    if shape == "diamond":
        return torch.tensor([(0.0, -1.05), (0.62, 0.0), (0.0, 1.05), (-0.62, 0.0)])
    if shape == "triangle":
        return torch.tensor([(0.0, -1.0), (0.98, 0.75), (-0.98, 0.75)])
    if shape == "cross":
        a, b = 0.32, 0.98
        return torch.tensor(
            [
                (-a, -b),
                (a, -b),
                (a, -a),
                (b, -a),
                (b, a),
                (a, a),
                (a, b),
                (-a, b),
                (-a, a),
                (-b, a),
                (-b, -a),
                (-a, -a),
            ]
        )
    if shape == "star":
        radii = [1.05 if i % 2 == 0 else 0.44 for i in range(10)]
        return torch.tensor(
            [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
        )
    turns = [2 * math.pi * i / 48 for i in range(48)]  # heart
    return torch.tensor(
        [
            (
                16 * math.sin(t) ** 3 / 16.5,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5 - 0.1,
            )
            for t in turns
        ]
    )


@functools.cache
def distance_table(shape: str) -> Tensor:
    """Return the signed distances (160, 160) of a shape over [-1.5, 1.5]^2, negative inside, in units of its radius.

    Args:
        shape: one of `SHAPES`.
    """
    axis = torch.linspace(-_EXTENT, _EXTENT, _TABLE_SIZE)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    if shape == "circle":
        return points.norm(dim=-1) - 0.9
    if shape == "ring":
        return (points.norm(dim=-1) - 0.72).abs() - 0.24
    return _polygon(points, _outline(shape))


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB (N, 3) in [0, 1] of HSV (degrees, [0, 1], [0, 1]), each (N,)."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] / 60) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _distances(scenes: Sequence[Scene], slots: int) -> Tensor:
    """Return the signed distances (N, slots, 64, 64) in pixels; an empty slot is far away everywhere."""
    grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
    gy, gx = torch.meshgrid(grid, grid, indexing="ij")
    flat = [(n, k, o) for n, scene in enumerate(scenes) for k, o in enumerate(scene.objects)]
    distances = torch.full((len(scenes), slots, SIZE, SIZE), 1e3)
    if not flat:
        return distances
    poses = torch.tensor([(o.x, o.y, o.radius, math.radians(o.rotation)) for _, _, o in flat])
    dx, dy = gx - poses[:, 0, None, None], gy - poses[:, 1, None, None]
    cos, sin = poses[:, 3].cos()[:, None, None], poses[:, 3].sin()[:, None, None]
    local = torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], -1) / poses[:, 2, None, None, None]
    tables = torch.stack([distance_table(s) for s in SHAPES])[[SHAPES.index(o.shape) for _, _, o in flat]]
    sampled = F.grid_sample(tables[:, None], local / _EXTENT, align_corners=True, padding_mode="border")[:, 0]
    # Beyond its border the table repeats its last value. Only distant pixels lie there, so any large distance will do.
    is_outside = local.abs().amax(-1) > _EXTENT
    sampled = torch.where(is_outside, sampled.clamp(min=0.3), sampled) * poses[:, 2, None, None]
    index = torch.tensor([(n, k) for n, k, _ in flat])
    distances[index[:, 0], index[:, 1]] = sampled
    return distances


def patch_labels(scenes: Sequence[Scene], patch: int = 8) -> Tensor:
    """Return the shape and the colour in each patch of an image.

    Args:
        scenes: N scenes.
        patch: side of a patch in pixels.

    Returns:
        Indices (N, 2, P) into `SHAPES` and `COLOURS`, patches row by row; 8 in both if less than a seventh of the patch is
        covered.
    """
    slots = max(len(s.objects) for s in scenes)
    covered = F.avg_pool2d((0.5 - _distances(scenes, slots)).clamp(0, 1), patch).flatten(2)
    share, index = covered.max(1)
    ground = len(SHAPES)
    names = torch.full((len(scenes), 2, slots), ground)
    for n, scene in enumerate(scenes):
        for k, o in enumerate(scene.objects):
            names[n, :, k] = torch.tensor([SHAPES.index(o.shape), COLOURS.index(o.colour)])
    labels = names.gather(2, index[:, None].expand(-1, 2, -1))
    return labels.masked_fill((share < 1 / 7)[:, None], ground)


def _smooth_noise(count: int, cells: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True)


def draw(scenes: Sequence[Scene], style: str = "plain") -> Tensor:
    """Draw scenes in one style.

    Args:
        scenes: N scenes; each has the seed of its own ground and noise.
        style: "plain" (filled shapes on a soft ground) or "art" (pastel outlines and hatching on textured paper).

    Returns:
        Images (N, 3, 64, 64), float32 in [0, 1]. An image does not depend on the others of the call.

    Raises:
        SettingError: no such style.
    """
    if style not in STYLES:
        raise SettingError(f"expected a style among {', '.join(STYLES)}, got {style!r}")
    count, slots = len(scenes), max((len(s.objects) for s in scenes), default=1) or 1
    distance = _distances(scenes, slots)
    grounds, grains = [], []
    for scene in scenes:
        generator = torch.Generator().manual_seed(scene.seed)
        u = torch.rand(8, generator=generator)
        tone = _hsv_to_rgb(360 * u[:2], 0.02 + 0.08 * u[2:4], 0.72 + 0.24 * u[4:6])
        angle = 2 * math.pi * u[6]
        axis = torch.linspace(-0.7, 0.7, SIZE)
        mix = (0.5 + axis[None, :] * angle.cos() + axis[:, None] * angle.sin()).clamp(0, 1)
        grounds.append(tone[0, :, None, None] * (1 - mix) + tone[1, :, None, None] * mix)
        grain = torch.randn(1, SIZE, SIZE, generator=generator)
        paper = _smooth_noise(1, 22, generator)[0] if style == "art" else torch.zeros(1, SIZE, SIZE)
        grains.append(0.008 * grain + 0.03 * paper)
    ground = torch.stack(grounds)
    flat = [(n, k, o) for n, scene in enumerate(scenes) for k, o in enumerate(scene.objects)]
    colours = torch.zeros(count, slots, 3)
    if flat:
        hsv = torch.tensor([(HUES[o.colour] + o.hue_shift, o.saturation, o.value) for _, _, o in flat])
        if style == "art":
            hsv[:, 1] *= 0.6
        index = torch.tensor([(n, k) for n, k, _ in flat])
        colours[index[:, 0], index[:, 1]] = _hsv_to_rgb(hsv[:, 0] % 360, hsv[:, 1], hsv[:, 2])
    if style == "art":
        ground = 0.5 * ground + 0.5 * torch.tensor([0.97, 0.95, 0.88])[:, None, None]
    images = ground
    ramp = torch.arange(SIZE, dtype=torch.float32)
    stripes = ((ramp[:, None] + ramp[None, :]) % 6 < 2).float()
    for k in range(slots):
        d, rgb = distance[:, k, None], colours[:, k, :, None, None]
        fill = (0.5 - d).clamp(0, 1)
        if style == "art":
            edge = (0.5 - ((d + 1.0).abs() - 1.1)).clamp(0, 1)
            wash = fill * (0.35 + 0.45 * stripes)
            images = images * (1 - wash) + rgb * wash
            images = images * (1 - edge) + 0.45 * rgb * edge
        else:
            images = images * (1 - fill) + rgb * fill
    return (images + torch.stack(grains)).clamp(0, 1)
