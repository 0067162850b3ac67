"""What the tabs share: the settings on the left, sentences for errors, pictures and words for the page."""

from __future__ import annotations

import contextlib
import html
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from ..errors import MaskUNetError
from ..images import to_pil
from .backend import Studio
from .requests import MOST_GUIDANCE, MOST_SEED, MOST_STEPS, Judged, Progress, Request
from .verdicts import sentence

logger = logging.getLogger(__name__)

NONE = "none"
#: One run at a time, whoever asks; the others wait their turn and see their place in the queue.
QUEUED: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
#: What the page does for itself: at once, and not in the interface for programs.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_PROMPTS = (
    "a yellow triangle and a pink square",
    "a green heart and a purple ring",
    "a ring above a square",
    "two hearts",
    "a red circle and a blue star",
)
_SHOWN = 512  # pixels a side that small pictures are enlarged to, for the eye only


@dataclass(frozen=True)
class Asked:
    """What all tabs share."""

    model: gr.Dropdown
    masker: gr.Dropdown
    prompt: gr.Textbox
    steps: gr.Number
    guidance: gr.Number
    seed: gr.Number

    @property
    def inputs(self) -> list[Any]:
        """In the order that `request_of` takes them."""
        return [self.model, self.masker, self.prompt, self.steps, self.guidance, self.seed]


def controls(studio: Studio) -> Asked:
    """Lay out the settings, filled in so that one press gives a comparison."""
    models, maskers = studio.models.names, studio.models.masker_names()
    bundled = studio.models.is_bundled(models[0])
    prompt = gr.Textbox(
        _PROMPTS[0] if bundled else "",
        label="Prompt",
        lines=2,
        max_lines=4,
        elem_id="prompt",
        placeholder="What to draw",
    )
    if bundled:
        gr.Examples([[text] for text in _PROMPTS], prompt, label="Prompts to try", elem_id="prompts")
    with gr.Row():
        model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model", min_width=170)
        masker = gr.Dropdown(
            [*maskers, NONE], value=(maskers or [NONE])[0], label="Masker", elem_id="masker", min_width=170
        )
    with gr.Row():
        steps = gr.Number(25, label="Steps", precision=0, elem_id="steps", minimum=1, maximum=MOST_STEPS, min_width=90)
        guidance = gr.Number(
            4.0 if bundled else 7.5,
            label="Guidance",
            elem_id="guidance",
            minimum=0,
            maximum=MOST_GUIDANCE,
            step=0.5,
            min_width=90,
        )
        seed = gr.Number(1, label="Seed", precision=0, elem_id="seed", minimum=0, maximum=MOST_SEED, min_width=90)
    return Asked(model, masker, prompt, steps, guidance, seed)


def request_of(model: str, masker: str, prompt: str, steps: int, guidance: float, seed: int) -> Request:
    """Return what the settings ask for."""
    return Request(model, prompt, steps, guidance, seed, None if masker == NONE else masker)


def masker_choices(studio: Studio, chosen: str) -> Any:
    """Return the masker's field with what is offered by now, and one of them chosen."""
    return gr.Dropdown(choices=[*studio.models.masker_names(), NONE], value=chosen)


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn errors into a sentence in the page."""
    try:
        yield
    except MaskUNetError as error:
        logger.info("%s", error)
        raise _refusal(sentence(error)) from error
    except Exception as error:
        logger.exception("a run of the page failed")
        raise _refusal(f"Something went wrong inside ({type(error).__name__}); the server's log says what.") from error


def _refusal(text: str) -> gr.Error:
    return gr.Error(html.escape(text, quote=False), duration=None, title="That did not work", print_exception=False)


def image(picture: Tensor) -> Image.Image:
    """A picture for the page; a small one is enlarged."""
    image: Image.Image = to_pil(picture[None])[0]
    factor = _SHOWN // max(image.size)
    if factor < 2:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


def said(side: str, judged: Judged) -> str:
    """What stands under a picture."""
    lines = [f"**{side}**"]
    if judged.reward is not None:
        lines.append(f"Reward {judged.reward:.4f}")
    if judged.verdict is not None:
        mark = {True: "✓ ", False: "✗ ", None: ""}[judged.verdict.right]
        lines.append(f"Judge: {mark}{judged.verdict.text}")
    return "  \n".join(lines)


def note(studio: Studio, request: Request, seeds: str) -> str:
    """Return how to get the same pictures again."""
    reward = studio.models.reward(request.model)
    scored = "" if reward is None else f" The reward is {reward.name}; higher is better."
    return (
        f"Seed {seeds}, {request.steps} steps, guidance {request.guidance_scale:g}: the same settings give the same "
        f"pictures again.{scored}"
    )


def shown(progress: Any) -> Progress:
    """Show progress by a bar of the page."""
    return lambda share, text: progress(share, desc=text)
