"""Line charts for pages: HTML and SVG without a script or a library, in the page's own fonts, readable on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from .plotting import COLOURS

#: Styles of `line_chart`; a page includes them once.
CHART_CSS = """
.chart { margin: 0; font-size: 13px; }
.chart .plot { position: relative; height: 200px; margin: 8px 0 1.8em 3.8em; }
.chart svg { display: block; width: 100%; height: 100%; overflow: visible; }
.chart svg * { vector-effect: non-scaling-stroke; fill: none; }
.chart .grid { stroke: currentColor; stroke-opacity: .15; }
.chart .reference { stroke: currentColor; stroke-opacity: .6; stroke-dasharray: 5 4; }
.chart .y, .chart .x { position: absolute; opacity: .75; white-space: nowrap; }
.chart .y { right: 100%; padding-right: .6em; transform: translateY(-50%); }
.chart .x { top: 100%; padding-top: .3em; transform: translateX(-50%); }
.chart .legend { display: flex; flex-wrap: wrap; gap: 0 1.2em; margin-left: 3.8em; }
.chart .legend i { display: inline-block; width: 1.4em; height: 0; border-top: 2.5px solid; vertical-align: middle; }
.chart figcaption { margin: .2em 0 0 3.8em; opacity: .75; }
"""
_SIZE = 100  # the drawing is stretched to the page's width, its lines are not


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    caption: str,
    reference: tuple[str, float] | None = None,
    x_ticks: bool = True,
) -> str:
    """Return a line chart as a piece of HTML; empty without any value.

    Args:
        series: points (x, y) by name, in the order in which lines connect them.
        caption: what the axes show, below the chart and for screen readers.
        reference: name and height of a dashed horizontal line.
        x_ticks: write numbers below the x axis.
    """
    points = [point for line in series.values() for point in line]
    heights = [y for _, y in points] + ([] if reference is None else [reference[1]])
    if not heights:
        return ""
    margin = max((max(heights) - min(heights)) * 0.1, 1e-3)
    low, high = min(heights) - margin, max(heights) + margin
    left = min((x for x, _ in points), default=0.0)
    right = max((x for x, _ in points), default=1.0)
    right = right if right > left else left + 1.0

    def across(x: float) -> float:
        return round(_SIZE * (x - left) / (right - left), 2)

    def down(y: float) -> float:
        return round(_SIZE * (high - y) / (high - low), 2)

    y_ticks = round_ticks(low, high)
    shapes = [f'<path d="M0 {down(tick)}H{_SIZE}" class="grid"/>' for tick in y_ticks]
    labels = [f'<span class="y" style="top: {down(tick)}%">{tick:.4g}</span>' for tick in y_ticks]
    if x_ticks:
        ticks = round_ticks(left, right)
        labels += [f'<span class="x" style="left: {across(tick)}%">{tick:.4g}</span>' for tick in ticks]
    legend = []
    if reference is not None:
        shapes.append(f'<path d="M0 {down(reference[1])}H{_SIZE}" class="reference"/>')
        legend.append(f'<span><i style="border-top-style: dashed"></i> {html.escape(reference[0])}</span>')
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = "".join(f"{'L' if k else 'M'}{across(x):.2f} {down(y):.2f}" for k, (x, y) in enumerate(line))
        shapes.append(f'<path d="{path}" stroke="{colour}" stroke-width="2.5" stroke-linejoin="round"/>')
        legend.append(f'<span><i style="border-color: {colour}"></i> {html.escape(name)}</span>')
    text = html.escape(caption)
    return (
        f'<figure class="chart" role="img" aria-label="{text}"><div class="plot">{"".join(labels)}'
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none">{"".join(shapes)}</svg></div>'
        f'<div class="legend">{"".join(legend)}</div><figcaption>{text}</figcaption></figure>'
    )


def round_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers in an interval, at least two.

    Args:
        low: its lower end.
        high: its upper end, above `low`.
    """
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]
