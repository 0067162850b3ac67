"""Two tabs: one image without and with masks, and a gallery of seeds."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .backend import Backend
from .requests import MAX_IMAGES, ComparisonPair, ScoredImage
from .widgets import (
    QUEUED,
    Controls,
    caption,
    errors_as_messages,
    progress_bar,
    repeat_note,
    to_page_image,
    to_request,
)


def compare_tab(backend: Backend, controls: Controls) -> None:
    """Lay out the tab of one comparison and connect it.

    Args:
        backend: what the page computes with.
        controls: the shared settings.
    """
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
        """Generate the prompt without and with the masks; both images, a caption each, and how to repeat them."""
        with errors_as_messages():
            request = to_request(model, masker, prompt, steps, guidance, seed)
            pair = backend.compare(request, progress_bar(progress))
            images = (to_page_image(pair.base.image), to_page_image(pair.masked.image))
            captions = caption("Base, on the left", pair.base), caption("Masked, on the right", pair.masked)
            return images, *captions, repeat_note(backend, request, str(pair.seed))

    gr.on(
        [run.click, controls.prompt.submit],
        compare,
        controls.inputs,
        [slider, base, masked, remark],
        api_name="compare",
        show_progress_on=slider,
        **QUEUED,
    )


def seeds_tab(backend: Backend, controls: Controls) -> None:
    """Lay out the tab of several seeds and connect it.

    Args:
        backend: what the page computes with.
        controls: the shared settings.
    """
    gr.Markdown("The same prompt from several seeds, each without and with masks.")
    count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="How many seeds", elem_id="seeds-count")
    run = gr.Button("Generate", variant="primary", elem_id="seeds-run")
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
        """Generate the prompt from several seeds, without and with the masks; the images and a summary."""
        with errors_as_messages():
            request = to_request(model, masker, prompt, steps, guidance, seed, count)
            pairs = backend.gallery(request, progress_bar(progress))
            images = [
                (to_page_image(side.image), f"{pair.seed} {name}{_mark(side)}")
                for pair in pairs
                for name, side in (("base", pair.base), ("masked", pair.masked))
            ]
            seeds = f"{pairs[0].seed} to {pairs[-1].seed}" if len(pairs) > 1 else str(pairs[0].seed)
            return images, f"{_tally(pairs)}\n\n{repeat_note(backend, request, seeds)}"

    inputs = [*controls.inputs, count]
    run.click(draw, inputs, [gallery, remark], api_name="seeds", show_progress_on=gallery, **QUEUED)


def _mark(side: ScoredImage) -> str:
    is_correct = None if side.verdict is None else side.verdict.is_correct
    mark = {True: " ✓", False: " ✗", None: ""}[is_correct]
    return mark if side.reward is None else f"{mark} {side.reward:.3f}"


def _tally(pairs: list[ComparisonPair]) -> str:
    lines = []
    for name, sides in (("Base", [p.base for p in pairs]), ("Masked", [p.masked for p in pairs])):
        parts = []
        rewards = [s.reward for s in sides if s.reward is not None]
        if rewards:
            parts.append(f"mean reward {sum(rewards) / len(rewards):.4f}")
        correct = [s.verdict.is_correct for s in sides if s.verdict is not None and s.verdict.is_correct is not None]
        if correct:
            parts.append(f"{sum(correct)} of {len(correct)} right")
        if parts:
            lines.append(f"**{name}**: {', '.join(parts)}")
    return "  \n".join(lines)
