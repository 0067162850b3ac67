"""The demo's page: one self-contained HTML file with images, verdicts and the density of the masks over timesteps."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from ..charts import CHART_CSS, line_chart
from ..evaluation.comparison import SIDES, Comparison
from ..images import to_pil

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
@media (prefers-color-scheme: dark) { :root { --good: #5fce96; --bad: #ff8a80; --masked: #7aa7ff; } }
"""


def _data_address(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1], enlarged to at least 128 pixels, as a data address."""
    converted = to_pil(image[None])[0]
    if converted.height < 128:
        converted = converted.resize((converted.width * 2, converted.height * 2), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    converted.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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


def demo_page(
    comparison: Comparison,
    images: Mapping[str, Tensor],
    density: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    summary: Sequence[str],
) -> str:
    """Return the page.

    Args:
        comparison: verdicts of both sides.
        images: images (N, 3, H, W) in [0, 1] of the first seed, by side.
        density: points (timestep, kept fraction) by name of the line.
        title: heading.
        summary: paragraphs below it.
    """
    cards = []
    for i, prompt in enumerate(comparison.prompts):
        figures = []
        for number, side in enumerate(SIDES):
            reason = comparison.reasons[number][0][i]
            verdict = "right" if reason is None else html.escape(reason)
            style = "right" if reason is None else "wrong"
            alt = html.escape(f"{prompt.prompt}, {side}: {verdict}")
            figures.append(
                f'<figure><img src="{_data_address(images[side][i])}" alt="{alt}">'
                f'<figcaption>{side}<br><span class="{style}">{verdict}</span></figcaption></figure>'
            )
        cards.append(
            f'<div class="card"><div class="prompt">{html.escape(prompt.prompt)}</div><div class="task">{prompt.task}</div>'
            f'<div class="pair">{"".join(figures)}</div></div>'
        )
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in summary)
    chart = line_chart(density, caption="Kept fraction of the masked weights over timesteps, by projection")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{CHART_CSS}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{paragraphs}"
        f"<h2>Images that show their prompt</h2>{_table(comparison)}"
        f"<h2>Density of the masks</h2>{chart}"
        f'<h2>Base and masked from the same noise</h2><div class="grid">{"".join(cards)}</div></body></html>\n'
    )
