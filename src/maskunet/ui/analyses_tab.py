"""A tab of the analyses for the masker that is chosen: an answer, a figure and a table."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .parts import QUEUED, Asked, request_of, sentences, shown
from .studio import Studio

_KEPT_S = 3600  # seconds that a person's latest analysis stays in memory


def analyses_tab(studio: Studio, asked: Asked) -> None:
    """Lay the tab out and connect it."""
    gr.Markdown("Looks at what the chosen masker does. Some of these take minutes; others wait their turn meanwhile.")
    names = list(studio.analyses.NAMES)
    with gr.Row(equal_height=True):
        name = gr.Dropdown(names, value=names[0], label="Analysis", elem_id="analysis-name", min_width=160)
        run = gr.Button("Analyse", variant="primary", elem_id="analysis-run", min_width=120)
    answer = gr.Markdown(elem_id="analysis-answer")
    figure = gr.Plot(label="Figure", elem_id="analysis-figure")
    table = gr.Dataframe(label="Table", interactive=False, wrap=True, elem_id="analysis-table")
    latest = gr.State(None, time_to_live=_KEPT_S)

    def analyse(
        model: str,
        masker: str,
        prompt: str,
        steps: int,
        guidance: float,
        seed: int,
        name: str,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Run an analysis of the chosen masker; its answer, figure and table."""
        with sentences():
            request = request_of(model, masker, prompt, steps, guidance, seed)
            found = studio.analyse(name, request, shown(progress))
            headers = list(dict.fromkeys(key for row in found.rows for key in row))
            rows = [[_cell(row.get(key)) for key in headers] for row in found.rows]
            return (
                f"### {found.title}\n{found.answer}",
                found.draw(),
                {"headers": headers, "data": rows},
                found,
            )

    inputs = [*asked.inputs, name]
    run.click(analyse, inputs, [answer, figure, table, latest], api_name="analyse", show_progress_on=figure, **QUEUED)
    keep = gr.Button("Keep figure and table", elem_id="analysis-keep")
    kept = gr.Markdown(elem_id="analysis-kept")

    def save(found: Any, name: str, masker: str) -> str:
        """Keep the figure and the table of the latest analysis of this person."""
        with sentences():
            return f"Kept in `{studio.keep_analysis(found, f'{name}-{masker}')}`."

    keep.click(save, [latest, name, asked.masker], kept, api_name="keep_analysis", concurrency_id="files")


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else value
