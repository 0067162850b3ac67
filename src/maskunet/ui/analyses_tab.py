"""The analyses of the selected masker: an answer, a figure and a table."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from .backend import Backend
from .requests import MAX_ANALYSED
from .widgets import QUEUED, Controls, errors_as_messages, progress_bar, to_request

#: Columns that are shown as one.
_VALUE = ("value", "low", "high", "unit")
_STATE_S = 3600  # seconds that a visitor's latest analysis stays in memory


def analyses_tab(backend: Backend, controls: Controls) -> None:
    """Lay out the tab and connect it.

    Args:
        backend: what the page computes with.
        controls: the shared settings.
    """
    gr.Markdown(
        "What does the selected masker do? More images give narrower intervals and take longer; some analyses take minutes."
    )
    names = list(backend.analyses.NAMES)
    with gr.Row():
        name = gr.Dropdown(names, value=names[0], label="Analysis", elem_id="analysis-name", min_width=170)
        count = gr.Number(
            12,
            label="Images per side",
            precision=0,
            minimum=1,
            maximum=MAX_ANALYSED,
            elem_id="analysis-count",
            min_width=120,
        )
    run = gr.Button("Analyse", variant="primary", elem_id="analysis-run")
    answer = gr.Markdown(label="Answer", elem_id="analysis-answer")
    figure = gr.Plot(label="Figure", show_label=False, elem_id="analysis-figure")
    with gr.Accordion("Numbers", open=False, elem_id="analysis-numbers"):
        table = gr.HTML(label="Numbers", elem_id="analysis-table")
    latest = gr.State(None, time_to_live=_STATE_S)

    def analyse(
        model: str,
        masker: str,
        prompt: str,
        steps: int,
        guidance: float,
        seed: int,
        name: str,
        count: int,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Run an analysis of the selected masker; its answer, figure and table."""
        with errors_as_messages():
            request = to_request(model, masker, prompt, steps, guidance, seed, count)
            result = backend.analyse(name, request, progress_bar(progress))
            return f"### {result.title}\n{result.answer}", result.draw(), _table(result.rows), result

    inputs = [*controls.inputs, name, count]
    run.click(analyse, inputs, [answer, figure, table, latest], api_name="analyse", show_progress_on=figure, **QUEUED)
    keep = gr.Button("Keep figure and table", elem_id="analysis-keep")
    status = gr.Markdown(label="Kept", elem_id="analysis-kept")

    def save(result: Any, name: str, masker: str) -> str:
        """Keep the figure and the table of this visitor's latest analysis."""
        with errors_as_messages():
            return f"Kept in `{backend.save_analysis(result, f'{name}-{masker}')}`."

    keep.click(save, [latest, name, controls.masker], status, api_name="keep_analysis", concurrency_id="files")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table that scrolls in its own frame; a value with its interval and unit is one column, the last."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _VALUE]
    lines = [_line("th", [*keys, "value"])]
    lines += [_line("td", [*(_cell(row.get(key)) for key in keys), _value(row)]) for row in rows]
    return f'<div class="numbers" tabindex="0"><table>{"".join(lines)}</table></div>'


def _line(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _value(row: Mapping[str, Any]) -> str:
    low, high = (_cell(row.get(key)) for key in ("low", "high"))
    return " ".join(
        filter(None, (_cell(row.get("value")), f"[{low}, {high}]" if low and high else "", row.get("unit")))
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)
