"""Two tabs: one picture without and with masks, and a gallery of seeds."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .backend import Studio
from .requests import MOST_PICTURES, Judged, Pair
from .widgets import QUEUED, Asked, image, note, request_of, said, sentences, shown


def compare_tab(studio: Studio, asked: Asked) -> None:
    """Lay out the tab of one comparison and connect it."""
    run = gr.Button("Compare", variant="primary", elem_id="compare-run")
    slider = gr.ImageSlider(
        label="Base on the left, masked on the right",
        show_label=False, format="png", interactive=False, max_height=512,
        buttons=["download", "fullscreen"], elem_id="compare-slider",
    )  # fmt: skip
    with gr.Row():
        base = gr.Markdown(label="Base", elem_id="compare-base", min_height=24)
        masked = gr.Markdown(label="Masked", elem_id="compare-masked", min_height=24)
    remark = gr.Markdown(label="Note", elem_id="compare-note")

    def compare(
        model: str,
        masker: str,
        prompt: str,
        steps: int,
        guidance: float,
        seed: int,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Draw the prompt without and with the masks; both pictures, what is said of each, and how to repeat it."""
        with sentences():
            request = request_of(model, masker, prompt, steps, guidance, seed)
            pair = studio.compare(request, shown(progress))
            pictures = (image(pair.base.picture), image(pair.masked.picture))
            words = said("Base, on the left", pair.base), said("Masked, on the right", pair.masked)
            return pictures, *words, note(studio, request.checked(), str(pair.seed))

    gr.on(
        [run.click, asked.prompt.submit],
        compare,
        asked.inputs,
        [slider, base, masked, remark],
        api_name="compare",
        show_progress_on=slider,
        **QUEUED,
    )


def seeds_tab(studio: Studio, asked: Asked) -> None:
    """Lay out the tab of several seeds and connect it."""
    gr.Markdown("The same prompt from several seeds, each without masks and with.")
    count = gr.Slider(1, MOST_PICTURES, 4, step=1, label="How many seeds", elem_id="seeds-count")
    run = gr.Button("Draw them", variant="primary", elem_id="seeds-run")
    gallery = gr.Gallery(
        label="Base, then masked, seed by seed",
        show_label=False, columns=4, format="png", object_fit="contain", height="auto",
        interactive=False, buttons=["download", "fullscreen"], elem_id="seeds-gallery",
    )  # fmt: skip
    remark = gr.Markdown(label="Note", elem_id="seeds-note")

    def draw(
        model: str,
        masker: str,
        prompt: str,
        steps: int,
        guidance: float,
        seed: int,
        count: int,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Draw the prompt from several seeds, without and with the masks; the pictures and a summary."""
        with sentences():
            request = request_of(model, masker, prompt, steps, guidance, seed)
            pairs = studio.gallery(request, count, shown(progress))
            pictures = [
                (image(side.picture), f"{pair.seed} {name}{_mark(side)}")
                for pair in pairs
                for name, side in (("base", pair.base), ("masked", pair.masked))
            ]
            seeds = f"{pairs[0].seed} to {pairs[-1].seed}" if len(pairs) > 1 else str(pairs[0].seed)
            return pictures, f"{_tally(pairs)}\n\n{note(studio, request.checked(), seeds)}"

    inputs = [*asked.inputs, count]
    run.click(draw, inputs, [gallery, remark], api_name="seeds", show_progress_on=gallery, **QUEUED)


def _mark(side: Judged) -> str:
    right = None if side.verdict is None else side.verdict.right
    mark = {True: " ✓", False: " ✗", None: ""}[right]
    return mark if side.reward is None else f"{mark} {side.reward:.3f}"


def _tally(pairs: list[Pair]) -> str:
    lines = []
    for name, sides in (("Base", [p.base for p in pairs]), ("Masked", [p.masked for p in pairs])):
        parts = []
        rewards = [s.reward for s in sides if s.reward is not None]
        if rewards:
            parts.append(f"mean reward {sum(rewards) / len(rewards):.4f}")
        verdicts = [s.verdict.right for s in sides if s.verdict is not None and s.verdict.right is not None]
        if verdicts:
            parts.append(f"{sum(verdicts)} of {len(verdicts)} right")
        if parts:
            lines.append(f"**{name}**: {', '.join(parts)}")
    return "  \n".join(lines)
