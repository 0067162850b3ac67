"""The demo's page: one self-contained HTML file with pictures, verdicts and the density of the masks over timesteps."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ..evaluation.comparison import SIDES, Comparison

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f4b; --bad: #b3372f; --base: #8a8f98; --masked: #2f6fde; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 64rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); }
tr.total td { font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: 1.2rem 1rem; }
.card { border-top: 1px solid var(--line); padding-top: .5rem; }
.card .prompt { font-weight: 600; min-height: 1.5em; } .card .task { opacity: .7; font-size: .85rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin-top: .4rem; }
figure { margin: 0; } img { width: 100%; display: block; image-rendering: auto; border-radius: 4px; }
figcaption { font-size: .82rem; line-height: 1.3; margin-top: .25rem; }
.right { color: var(--good); } .wrong { color: var(--bad); }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
@media (prefers-color-scheme: dark) { :root { --good: #5fce96; --bad: #ff8a80; --masked: #7aa7ff; } }
"""


def _png(picture: Tensor) -> str:
    """A picture (3, H, W) in [0, 1], at least 128 pixels high, as a data address."""
    array = (picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(array)
    if image.height < 128:
        image = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def line_plot(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Return an SVG line plot.

    Args:
        series: x and y values by name.
        x_label, y_label: axis titles.
    """
    width, height, left, bottom, top, right = 640, 300, 70, 46, 14, 150
    xs = [x for x_values, _ in series.values() for x in x_values]
    ys = [y for _, y_values in series.values() for y in y_values]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    pad = max(0.02 * (max(ys) - min(ys)), 1e-6)
    y_low, y_high = min(ys) - pad, max(ys) + pad

    def place(x: float, y: float) -> str:
        px = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        py = height - bottom - (y - y_low) / (y_high - y_low) * (height - bottom - top)
        return f"{px:.1f},{py:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_label)} over {x_label}">']
    for i in range(5):
        y = y_low + (y_high - y_low) * i / 4
        px, py = place(x_low, y).split(",")
        parts.append(
            f'<line x1="{px}" y1="{py}" x2="{width - right}" y2="{py}" stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{float(px) - 8:.1f}" y="{float(py) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        )
        x = x_low + (x_high - x_low) * i / 4
        px, _ = place(x, y_low).split(",")
        parts.append(f'<text x="{px}" y="{height - bottom + 18}" text-anchor="middle">{x:.0f}</text>')
    colours = ("#2f6fde", "#d9822b", "#1a9e77", "#b34fc4", "#8a8f98", "#c43d5f", "#6b8e23", "#00a0b0")
    for i, (name, (x_values, y_values)) in enumerate(series.items()):
        points = " ".join(place(x, y) for x, y in zip(x_values, y_values, strict=True))
        colour = colours[i % len(colours)]
        label_y = top + 12 + 18 * i
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<line x1="{width - right + 10}" x2="{width - right + 28}" y1="{label_y - 4}" y2="{label_y - 4}" '
                     f'stroke="{colour}" stroke-width="2"/>')  # fmt: skip
        parts.append(f'<text x="{width - right + 34}" y="{label_y}">{html.escape(name)}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    centre = (top + height - bottom) / 2
    parts.append(
        f'<text x="14" y="{centre}" text-anchor="middle" transform="rotate(-90 14 {centre})">{html.escape(y_label)}</text>'
    )
    return "".join(parts) + "</svg>"


def _table(comparison: Comparison) -> str:
    rows = []
    lines = comparison.to_markdown().splitlines()
    head = "".join(f"<th>{html.escape(cell.strip())}</th>" for cell in lines[0].strip("|").split("|"))
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        total = cells[0].startswith("**")
        cells[0] = cells[0].strip("*")
        body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="total">{body}</tr>' if total else f"<tr>{body}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def page(
    comparison: Comparison,
    pictures: dict[str, Tensor],
    density: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    summary: Sequence[str],
) -> str:
    """Return the page.

    Args:
        comparison: verdicts of both sides.
        pictures: pictures (N, 3, H, W) in [0, 1] by side, of the first seed.
        density: timesteps and densities by name of the line.
        title: heading.
        summary: paragraphs below it.
    """
    cards = []
    for i, prompt in enumerate(comparison.prompts):
        figures = []
        for side, name in enumerate(SIDES):
            reason = comparison.reasons[side][0][i]
            verdict = "right" if reason is None else html.escape(reason)
            mark = "right" if reason is None else "wrong"
            alt = html.escape(f"{prompt.prompt}, {name}: {verdict}")
            figures.append(
                f'<figure><img src="{_png(pictures[name][i])}" alt="{alt}">'
                f'<figcaption>{name}<br><span class="{mark}">{verdict}</span></figcaption></figure>'
            )
        cards.append(
            f'<div class="card"><div class="prompt">{html.escape(prompt.prompt)}</div><div class="task">{prompt.task}</div>'
            f'<div class="pair">{"".join(figures)}</div></div>'
        )
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in summary)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{paragraphs}"
        f"<h2>Right pictures, judged</h2>{_table(comparison)}"
        f"<h2>Density of the masks over timesteps</h2>{line_plot(density, 'timestep', 'kept fraction')}"
        f'<h2>Pictures, base and masked from the same noise</h2><div class="grid">{"".join(cards)}</div></body></html>\n'
    )
