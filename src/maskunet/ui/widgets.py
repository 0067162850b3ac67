"""Shared parts of the tabs: the settings on the left, errors as messages, images and captions."""

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
from ..zoo import defaults
from .backend import Backend
from .requests import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, ProgressCallback, Request, ScoredImage
from .verdicts import sentence

logger = logging.getLogger(__name__)

NONE = "none"
#: One run at a time for all visitors; the others wait and see their place in the queue.
QUEUED: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
#: Events of the page itself: they skip the queue and are not part of the page's API.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_PROMPTS = (
    "a yellow triangle and a pink square",
    "a green heart and a purple ring",
    "a ring above a square",
    "two hearts",
    "a red circle and a blue star",
)
_DISPLAY_SIZE = 512  # pixels per side that small images are enlarged to, for the eye only


@dataclass(frozen=True)
class Controls:
    """The settings that all tabs share."""

    model: gr.Dropdown
    masker: gr.Dropdown
    prompt: gr.Textbox
    steps: gr.Number
    guidance: gr.Number
    seed: gr.Number

    @property
    def inputs(self) -> list[Any]:
        """The components in the order of `to_request`'s parameters."""
        return [self.model, self.masker, self.prompt, self.steps, self.guidance, self.seed]


def build_controls(backend: Backend) -> Controls:
    """Lay out the settings, filled in so that one press gives a comparison.

    Args:
        backend: what the page computes with.
    """
    models, maskers = backend.models.names, backend.models.masker_names()
    bundled = backend.models.is_bundled(models[0])
    prompt = gr.Textbox(
        _PROMPTS[0] if bundled else "",
        label="Prompt",
        lines=2,
        max_lines=4,
        elem_id="prompt",
        placeholder="What to generate",
    )
    if bundled:
        gr.Examples([[text] for text in _PROMPTS], prompt, label="Prompts to try", elem_id="prompts")
    with gr.Row():
        model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model", min_width=170)
        masker = gr.Dropdown(
            [*maskers, NONE], value=(maskers or [NONE])[0], label="Masker", elem_id="masker", min_width=170
        )
    with gr.Row():
        steps = gr.Number(
            defaults.NUM_INFERENCE_STEPS,
            label="Steps",
            precision=0,
            elem_id="steps",
            minimum=1,
            maximum=MAX_STEPS,
            min_width=90,
        )
        guidance = gr.Number(
            backend.models.guidance_scale(models[0]),
            label="Guidance",
            elem_id="guidance",
            minimum=0,
            maximum=MAX_GUIDANCE,
            step=0.5,
            min_width=90,
        )
        seed = gr.Number(1, label="Seed", precision=0, elem_id="seed", minimum=0, maximum=MAX_SEED, min_width=90)
    model.input(backend.models.guidance_scale, model, guidance, **AT_ONCE)
    return Controls(model, masker, prompt, steps, guidance, seed)


def to_request(
    model: str, masker: str, prompt: str, steps: float, guidance: float | None, seed: float, count: float = 1
) -> Request:
    """Return the request that the settings describe.

    Args:
        model: name of an offered model.
        masker: name of an offered masker, or `NONE`.
        prompt: the caption.
        steps: denoising steps.
        guidance: strength of classifier-free guidance; the model's default if None.
        seed: the first seed.
        count: images, of consecutive seeds.

    Raises:
        SettingError: no prompt, or a number out of range.
    """
    return Request(
        model,
        " ".join(str(prompt or "").split()),
        steps=_integer(steps),
        guidance_scale=guidance,
        seed=_integer(seed),
        masker=None if masker == NONE else masker,
        count=_integer(count),
    )


def _integer(value: Any) -> Any:
    """Convert a whole number that a browser sent as a float; leave anything else for `Request` to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def masker_choices(backend: Backend, value: str) -> Any:
    """Return the masker's field with the maskers that are offered now.

    Args:
        backend: what the page computes with.
        value: the masker to select.
    """
    return gr.Dropdown(choices=[*backend.models.masker_names(), NONE], value=value)


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turn errors into messages of the page."""
    try:
        yield
    except MaskUNetError as error:
        logger.info("%s", error)
        raise _message(sentence(error)) from error
    except Exception as error:
        logger.exception("a run of the page failed")
        raise _message(f"Something went wrong inside ({type(error).__name__}); the server's log says what.") from error


def _message(text: str) -> gr.Error:
    return gr.Error(html.escape(text, quote=False), duration=None, title="That did not work", print_exception=False)


def to_page_image(image: Tensor) -> Image.Image:
    """Return an image for the page; a small one is enlarged.

    Args:
        image: (3, H, W) in [0, 1].
    """
    converted: Image.Image = to_pil(image[None])[0]
    factor = _DISPLAY_SIZE // max(converted.size)
    if factor < 2:
        return converted
    return converted.resize((converted.width * factor, converted.height * factor), Image.Resampling.LANCZOS)


def caption(side: str, scored: ScoredImage) -> str:
    """Return the caption of an image.

    Args:
        side: label of the image, such as "With the masks".
        scored: the image with its reward and verdict.
    """
    lines = [f"**{side}**"]
    if scored.reward is not None:
        lines.append(f"Reward {scored.reward:.4f}")
    if scored.verdict is not None:
        mark = {True: "✓ ", False: "✗ ", None: ""}[scored.verdict.is_correct]
        lines.append(f"Judge: {mark}{scored.verdict.text}")
    return "  \n".join(lines)


def repeat_note(backend: Backend, request: Request, seeds: str) -> str:
    """Return the settings that reproduce the images, as a sentence.

    Args:
        backend: what the page computes with.
        request: the request.
        seeds: its seeds as text.
    """
    guidance = request.guidance_scale
    guidance = backend.models.guidance_scale(request.model) if guidance is None else guidance
    reward = backend.models.reward(request.model)
    scored = "" if reward is None else f" The reward is {reward.name}; higher is better."
    return (
        f"Seed {seeds}, {request.steps} steps, guidance {guidance:g}: the same settings give the same "
        f"images again.{scored}"
    )


def progress_bar(progress: Any) -> ProgressCallback:
    """Return a callback that moves a progress bar of the page.

    Args:
        progress: a `gradio.Progress`.
    """
    return lambda share, text: progress(share, desc=text)
