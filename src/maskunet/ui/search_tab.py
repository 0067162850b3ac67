"""A search that one can watch: rewards so far, the predicted image, a stop button, and masks to keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..searching import PRESETS
from .backend import Backend
from .requests import Request, SearchControl, SearchProgress
from .reward_curve import reward_curve
from .widgets import (
    AT_ONCE,
    NONE,
    QUEUED,
    Controls,
    caption,
    errors_as_messages,
    masker_choices,
    repeat_note,
    to_page_image,
    to_request,
)

_ABOUT = (
    "Raises the reward of this prompt without training. *Drafts and masks* drafts seven starting noises, the seed's own "
    "among them, and keeps the most promising one; the other efforts start from the seed's own. Then each trial draws "
    "masks, predicts the image that the model would arrive at, and follows the gradient of the reward."
)
#: Presets of a search, the command's own default first.
_EFFORTS = [("drafts and masks", "default"), ("quick", "fast"), ("masks alone", "masks"), ("as in the paper", "paper")]
_STATE_S = 3600  # seconds that a visitor's latest masks stay in memory


class _Controls:
    """One `SearchControl` for each visitor whose search runs or waits."""

    def __init__(self) -> None:
        self._by_visitor: dict[str, SearchControl] = {}

    def renew(self, visitor: str) -> None:
        self._by_visitor[visitor] = SearchControl()

    def get(self, visitor: str) -> SearchControl:
        return self._by_visitor.setdefault(visitor, SearchControl())

    def stop(self, visitor: str) -> None:
        if visitor in self._by_visitor:
            self._by_visitor[visitor].stop.set()

    def abandon(self, visitor: str) -> None:
        if visitor in self._by_visitor:
            self._by_visitor[visitor].abandon.set()

    def discard(self, visitor: str, control: SearchControl) -> None:
        if self._by_visitor.get(visitor) is control:
            del self._by_visitor[visitor]


def search_tab(backend: Backend, controls: Controls, page: gr.Blocks) -> None:
    """Lay out the tab and connect it.

    Args:
        backend: what the page computes with.
        controls: the shared settings.
        page: the page, which reports when a visitor leaves.
    """
    assert {value for _, value in _EFFORTS} <= set(PRESETS)
    searches = _Controls()
    gr.Markdown(_ABOUT)
    effort = gr.Radio(_EFFORTS, value="default", label="Effort", elem_id="search-effort")
    on_top = gr.Checkbox(False, label="Search on top of the selected masker", elem_id="search-on-top")
    with gr.Row():
        run = gr.Button("Search", variant="primary", elem_id="search-run", min_width=120)
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="search-stop", min_width=120)
    with gr.Row():
        base = gr.Image(
            label="Without the search",
            show_label=False, format="png", interactive=False, buttons=["download"], min_width=140,
            elem_id="search-base",
        )  # fmt: skip
        now = gr.Image(
            label="With the masks so far",
            show_label=False, format="png", interactive=False, buttons=["download"], min_width=140,
            elem_id="search-now",
        )  # fmt: skip
    with gr.Row():
        base_words = gr.Markdown(label="Without", elem_id="search-base-words", min_height=24)
        now_words = gr.Markdown(label="With masks", elem_id="search-now-words", min_height=24)
    curve = gr.HTML(label="Reward by trial", elem_id="search-curve")
    status = gr.Markdown(label="Status", elem_id="search-status")
    result = gr.State(None, time_to_live=_STATE_S)

    def search(
        model: str,
        masker: str,
        prompt: str,
        steps: int,
        guidance: float,
        seed: int,
        effort: str,
        on_top: bool,
        visitor: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Search masks for a prompt and a seed; yields images, captions, the curve and the status."""
        control = searches.get(str(visitor.session_hash))
        try:
            with errors_as_messages():
                request = to_request(model, masker if on_top else NONE, prompt, steps, guidance, seed)
                for state in backend.search(request, effort, control):
                    yield _show(backend, request, state)
        finally:
            searches.discard(str(visitor.session_hash), control)

    def start(visitor: gr.Request) -> tuple[Any, ...]:
        searches.renew(str(visitor.session_hash))
        return gr.Button(interactive=False), gr.Button(interactive=True), None

    def enable() -> tuple[Any, Any]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def end(visitor: gr.Request) -> Any:
        searches.stop(str(visitor.session_hash))
        return gr.Button(interactive=False)

    def leave(visitor: gr.Request) -> None:
        searches.abandon(str(visitor.session_hash))

    inputs = [*controls.inputs, effort, on_top]
    outputs = [base, now, base_words, now_words, curve, status, result]
    running = run.click(start, None, [run, stop, result], **AT_ONCE).then(
        search, inputs, outputs, api_name="search", show_progress="minimal", show_progress_on=status, **QUEUED
    )
    running.then(enable, None, [run, stop], **AT_ONCE)
    stop.click(end, None, stop, **AT_ONCE)
    page.unload(leave)
    _keep_row(backend, controls, result)


def _keep_row(backend: Backend, controls: Controls, result: gr.State) -> None:
    name = gr.Textbox(
        label="Name for these masks", placeholder="the prompt, if left empty", max_lines=1, elem_id="search-name"
    )
    keep = gr.Button("Keep these masks and use them", elem_id="search-keep")
    status = gr.Markdown(label="Kept", elem_id="search-kept")

    def save(result: Any, name: str) -> tuple[Any, str]:
        """Keep the masks of this visitor's latest search, and select them as the masker."""
        with errors_as_messages():
            masker = backend.save_masks(result, name)
            folder = backend.folder.path / masker
            return masker_choices(backend, masker), f"Kept as **{masker}** in `{folder}` and selected as the masker."

    keep.click(save, [result, name], [controls.masker, status], api_name="keep", concurrency_id="files")


def _show(backend: Backend, request: Request, state: SearchProgress) -> tuple[Any, ...]:
    step = f"Step {round(state.share * request.steps)} of {request.steps}"
    if state.base is None:
        return None, None, "", "", "", f"{step} of the image without the search.", None
    reward = backend.models.reward(request.model)
    curve = reward_curve(state.rewards, state.base.reward, "" if reward is None else reward.name)
    status = f"{step}, {len(state.rewards)} trials."
    if state.result is not None:
        ended = "Stopped; the masks found so far are kept" if state.is_stopped else "Done"
        status = f"{ended}. {repeat_note(backend, request, str(request.seed))}"
        (start_seed,) = state.result.start_seeds
        if start_seed != request.seed:
            status += f" The masks belong to the noise of seed {start_seed}, which its draft promised most."
    current = state.current
    return (
        to_page_image(state.base.image),
        gr.skip() if current is None else to_page_image(current.image),
        caption("Without the search", state.base),
        "" if current is None else caption("With the masks" if state.result else "With the masks so far", current),
        curve,
        status,
        state.result,
    )
