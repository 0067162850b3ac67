"""The reward of a search as it grows: a small drawing in the page's own colours, which needs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 560, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 30


def reward_curve(values: Sequence[float], base: float | None, name: str) -> str:
    """Draw rewards by trial as SVG.

    Args:
        values: the rewards so far.
        base: reward of the picture without the search; a dashed line.
        name: of the reward.
    """
    known = [*values, *([] if base is None else [base])]
    if not known:
        return ""
    low, high = min(known), max(known)
    room = max((high - low) * 0.1, 1e-3)
    low, high = low - room, high + room

    def x(index: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index / max(len(values) - 1, 1))

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    if base is not None:
        level = y(base)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}" class="base"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{level - 5:.1f}" text-anchor="end">without the search</text>')
    if values:
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
        parts.append(f'<polyline points="{points}" class="reward"/>')
        parts.append(f'<circle cx="{x(len(values) - 1):.1f}" cy="{y(values[-1]):.1f}" r="4" class="now"/>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{len(values)} trials</text>')
    said = f"Reward {name} after {len(values)} trials" + (f": {values[-1]:.4f}" if values else "")
    return (
        f'<svg class="reward-curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]
