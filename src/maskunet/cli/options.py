"""Options that several commands share: one spelling, one help and one default each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..settings import MAX_GUIDANCE_SCALE
from ..zoo import defaults as bundled
from .checks import finite, valid_seed
from .defaults import GUIDANCE_SCALE, MEASURED_STEPS, NUM_INFERENCE_STEPS

MAX_STEPS = 1000
MAX_IMAGES = 1_000_000


def option(*names: str, text: str, default: object = None, **options: Any) -> Any:
    """Return an option whose help ends in its default.

    Args:
        names: spellings, the canonical one first; the parameter's name with dashes if none.
        text: the help.
        default: text of the default; left out if None.
        options: passed to `typer.Option`.
    """
    shown = "" if default is None else f" [default: {default}]"
    return typer.Option(*names, help=f"{text}{shown}", show_default=False, **options)


def _guidance(default: str) -> Any:
    text = "Strength of classifier-free guidance; 1 or less switches it off."
    return option(text=text, default=default, min=0, max=MAX_GUIDANCE_SCALE, callback=finite)


_GUIDANCE = f"{GUIDANCE_SCALE:g}; {bundled.GUIDANCE_SCALE:g} with shapes"
_STEPS = (
    f"{NUM_INFERENCE_STEPS}"
    if bundled.NUM_INFERENCE_STEPS == NUM_INFERENCE_STEPS
    else f"{NUM_INFERENCE_STEPS}; {bundled.NUM_INFERENCE_STEPS} with shapes"
)
_MEASURED = f"{MEASURED_STEPS}; {bundled.NUM_INFERENCE_STEPS} with shapes"

Model = Annotated[
    str,
    option(text="Model: 'shapes', a diffusers folder, a .safetensors file or a hub id.", default="shapes, bundled"),
]
OptionalModel = Annotated[
    str | None, option(text="Model: 'shapes', a diffusers folder, a .safetensors file or a hub id.", default="none")
]
MaskerSource = Annotated[
    str | None,
    option(
        text="Masker: a folder, a hub id, 'shapes-masker', or a search's output folder.",
        default="none, the base model",
    ),
]
MaskerSources = Annotated[
    list[str] | None,
    option(
        "--masker",
        text="Masker: a folder, a hub id, 'shapes-masker', or a search's output folder. Several are composed: repeat it, as "
        "SOURCE or NAME=SOURCE.",
        default="none, the base model",
    ),
]
Compose = Annotated[
    str | None,
    option(
        text="How several maskers are composed: product keeps a weight where all keep it, majority where at least half do.",
        default="product",
    ),
]
Prompts = Annotated[list[str] | None, option("--prompt", text="Prompt; may be repeated.", default="none")]
PromptsFile = Annotated[Path | None, option(text="Text file with one prompt per line.", default="none")]
NegativePrompt = Annotated[str | None, option(text="Prompt to steer away from.", default="none")]
Device = Annotated[str | None, option(text="cpu, cuda, cuda:1 or mps.", default="the first accelerator, else cpu")]
Dtype = Annotated[
    str | None, option(text="float32, float16 or bfloat16.", default="float16 on CUDA, float32 elsewhere")
]
Scheduler = Annotated[
    str | None,
    option(text="ddim, euler, euler-ancestral, dpm-solver++, unipc or pndm.", default="the model's own"),
]
Steps = Annotated[
    int | None,
    option(text="Denoising steps.", default=_STEPS, min=1, max=MAX_STEPS),
]
MeasuredSteps = Annotated[int | None, option(text="Denoising steps.", default=_MEASURED, min=1, max=MAX_STEPS)]
Guidance = Annotated[float | None, _guidance(_GUIDANCE)]
BundledGuidance = Annotated[float | None, _guidance(f"{bundled.GUIDANCE_SCALE:g}, of the bundled model")]
GuidanceRescale = Annotated[
    float,
    option(
        text="Share of the guided output that is rescaled to the conditional one's deviation, from 0 to 1.",
        default="0",
        min=0,
        max=1,
        callback=finite,
    ),
]
Seed = Annotated[int, option(text="Seed; image i starts from the noise of seed + i.", default=0, callback=valid_seed)]
Limit = Annotated[int | None, option(text="Use the first N prompts.", default="all", min=1)]
Rewards = Annotated[
    list[str] | None,
    option(
        "--reward",
        text="Reward: NAME, NAME:WEIGHT, NAME=SOURCE or NAME=SOURCE:WEIGHT; may be repeated.",
        default=f"{bundled.REWARD} with shapes, else required",
    ),
]
Preset = Annotated[
    str, option(text="Preset of the search's settings: default, masks, fast or paper.", default="default")
]


def batch_size(default: object, text: str = "Prompts per call of the pipeline.") -> Any:
    """Return the option `--batch-size`.

    Args:
        default: text of the default.
        text: the help.
    """
    return option("--batch-size", text=text, default=default, min=1)


def output(text: str, default: str) -> Any:
    """Return the option `--output`.

    Args:
        text: the help.
        default: text of the default.
    """
    return option("--output", text=text, default=default)
