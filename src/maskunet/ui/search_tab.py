"""A tab that searches a mask while one watches: rewards so far, the predicted picture, a stop, and masks to keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..searching import PRESETS
from .backend import Studio
from .requests import Ending, Moment, Request
from .reward_curve import reward_curve
from .widgets import AT_ONCE, NONE, QUEUED, Asked, image, masker_choices, note, request_of, said, sentences

_ABOUT = (
    "Looks for masks that raise the reward of this very prompt and seed, with no training: every trial draws masks, looks "
    "at the picture that the model would arrive at, and follows the gradient of the reward."
)
#: The page searches from the very noise that it shows beside, so without drafts.
_EFFORTS = [("quick", "fast"), ("normal", "masks"), ("as in the paper", "paper")]
_KEPT_S = 3600  # seconds that a person's latest masks stay in memory


class _Endings:
    """Who wants to stop or has left: an ending for each person whose search runs or waits."""

    def __init__(self) -> None:
        self._endings: dict[str, Ending] = {}

    def arm(self, person: str) -> None:
        self._endings[person] = Ending()

    def of(self, person: str) -> Ending:
        return self._endings.setdefault(person, Ending())

    def stop(self, person: str) -> None:
        if person in self._endings:
            self._endings[person].stop.set()

    def leave(self, person: str) -> None:
        if person in self._endings:
            self._endings[person].leave.set()

    def forget(self, person: str, ending: Ending) -> None:
        if self._endings.get(person) is ending:
            del self._endings[person]


def search_tab(studio: Studio, asked: Asked, page: gr.Blocks) -> None:
    """Lay the tab out and connect it."""
    assert {value for _, value in _EFFORTS} <= set(PRESETS)
    endings = _Endings()
    gr.Markdown(_ABOUT)
    effort = gr.Radio(_EFFORTS, value="masks", label="Effort", elem_id="search-effort")
    on_top = gr.Checkbox(False, label="Search on top of the chosen masker", elem_id="search-on-top")
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
    found = gr.State(None, time_to_live=_KEPT_S)

    def search(
        model: str,
        masker: str,
        prompt: str,
        steps: int,
        guidance: float,
        seed: int,
        effort: str,
        on_top: bool,
        person: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Search masks for a prompt and a seed; yields the pictures, what is said of them, the curve and where it is."""
        ending = endings.of(str(person.session_hash))
        try:
            with sentences():
                request = request_of(model, masker if on_top else NONE, prompt, steps, guidance, seed)
                for moment in studio.search(request, effort, ending):
                    yield _shown(studio, request, moment)
        finally:
            endings.forget(str(person.session_hash), ending)

    def arm(person: gr.Request) -> tuple[Any, ...]:
        endings.arm(str(person.session_hash))
        return gr.Button(interactive=False), gr.Button(interactive=True), None

    def rest() -> tuple[Any, Any]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def end(person: gr.Request) -> Any:
        endings.stop(str(person.session_hash))
        return gr.Button(interactive=False)

    def leave(person: gr.Request) -> None:
        endings.leave(str(person.session_hash))

    inputs = [*asked.inputs, effort, on_top]
    outputs = [base, now, base_words, now_words, curve, status, found]
    running = run.click(arm, None, [run, stop, found], **AT_ONCE).then(
        search, inputs, outputs, api_name="search", show_progress="minimal", show_progress_on=status, **QUEUED
    )
    running.then(rest, None, [run, stop], **AT_ONCE)
    stop.click(end, None, stop, **AT_ONCE)
    page.unload(leave)
    _keep_row(studio, asked, found)


def _keep_row(studio: Studio, asked: Asked, found: gr.State) -> None:
    name = gr.Textbox(
        label="Name for these masks", placeholder="the prompt, if left empty", max_lines=1, elem_id="search-name"
    )
    keep = gr.Button("Keep these masks and use them", elem_id="search-keep")
    kept = gr.Markdown(label="Kept", elem_id="search-kept")

    def save(found: Any, name: str) -> tuple[Any, str]:
        """Keep the masks that the latest search of this person found, and choose them as the masker."""
        with sentences():
            masker = studio.keep(found, name)
            where = studio.folder.path / masker
            return masker_choices(studio, masker), f"Kept as **{masker}** in `{where}` and chosen as the masker."

    keep.click(save, [found, name], [asked.masker, kept], api_name="keep", concurrency_id="files")


def _shown(studio: Studio, request: Request, moment: Moment) -> tuple[Any, ...]:
    taken = f"Step {round(moment.share * request.steps)} of {request.steps}"
    if moment.base is None:
        return None, None, "", "", "", f"{taken} of the picture without the search.", None
    reward = studio.models.reward(request.model)
    drawn = reward_curve(moment.curve, moment.base.reward, "" if reward is None else reward.name)
    judged = moment.judged
    status = f"{taken}, {len(moment.curve)} trials."
    if moment.found is not None:
        ended = "Stopped; what was found by then is kept" if moment.stopped else "Done"
        status = f"{ended}. {note(studio, request, str(request.seed))}"
    return (
        image(moment.base.picture),
        gr.skip() if judged is None else image(judged.picture),
        said("Without the search", moment.base),
        "" if judged is None else said("With the masks" if moment.found else "With the masks so far", judged),
        drawn,
        status,
        moment.found,
    )
