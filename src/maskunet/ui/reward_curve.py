"""The reward of a search as it grows: a small drawing in the page's own colours, which needs no script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 100, 100  # the drawing is stretched to the page's width, its lines are not


def reward_curve(values: Sequence[float], base: float | None, name: str) -> str:
    """Draw rewards by trial as a piece of a page.

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

    def y(value: float) -> float:
        return round(_HEIGHT * (high - value) / (high - low), 2)

    ticks = _ticks(low, high)
    lines = [f'<path d="M0 {y(tick)}H{_WIDTH}" class="grid"/>' for tick in ticks]
    if base is not None:
        lines.append(f'<path d="M0 {y(base)}H{_WIDTH}" class="base"/>')
    across = _WIDTH / max(len(values) - 1, 1)
    lines.append(f'<path d="{_path([(i * across, y(v)) for i, v in enumerate(values)])}" class="reward"/>')
    marks = "".join(f'<span class="tick" style="top: {1.8 * y(tick):.1f}px">{tick:.4g}</span>' for tick in ticks)
    said = f"Reward ({html.escape(name)}) of the predicted picture: {len(values)} trials"
    said += f", now {values[-1]:.4f}" if values else ""
    said += "" if base is None else f"; dashed, without the search: {base:.4f}"
    return (
        f'<div class="reward-curve" role="img" aria-label="{said}">{marks}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none">{"".join(lines)}</svg><p>{said}</p></div>'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:.2f} {y:.2f}" for i, (x, y) in enumerate(points))


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]
