"""Prompts, seeds and options of sampling, checked before anything is computed."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, SettingError
from ..settings import MAX_GUIDANCE_SCALE, MAX_PIXELS, Settings, integer, number, text

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000


@dataclass(frozen=True)
class SamplingOptions(Settings):
    """Options that `generate`, `StepwiseSampler` and `syngen` check.

    Args:
        num_inference_steps: denoising steps, 1 to 1000.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off. The model's default if None.
        negative_prompt: prompt to steer away from.
        height: height of the images in pixels; the model's own if None.
        width: width of the images in pixels; the model's own if None.
        eta: share of fresh noise in DDIM's steps, in [0, 1].
        batch_size: prompts per call of the pipeline, >= 1.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].

    Raises:
        SettingError: an option is out of range.
    """

    num_inference_steps: int = integer(25, at_least=1, at_most=MAX_STEPS)
    guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE_SCALE, optional=True)
    negative_prompt: str | None = text(None, optional=True)
    height: int | None = integer(None, at_least=8, at_most=MAX_PIXELS, optional=True)
    width: int | None = integer(None, at_least=8, at_most=MAX_PIXELS, optional=True)
    eta: float = number(0.0, at_least=0, at_most=1)
    batch_size: int = integer(8, at_least=1)
    guidance_rescale: float = number(0.0, at_least=0, at_most=1)


def checked_prompts(prompts: Any) -> list[str]:
    """Return prompts as a list.

    Args:
        prompts: one or more strings, as a sequence.

    Raises:
        DataError: a single string, no prompts, or something else than strings.
    """
    if isinstance(prompts, str):
        raise DataError(f"expected a list of prompts, got the string {prompts!r}; put it into a list")
    is_ordered = isinstance(prompts, Iterable) and not isinstance(prompts, Mapping | Set | bytes)
    texts = list(prompts) if is_ordered else []
    if not texts:
        raise DataError(f"expected a list of at least one prompt, got {prompts!r}")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"expected prompts as strings, got {wrong[0]!r}")
    return texts


def checked_seeds(seeds: Any, count: int) -> list[int]:
    """Return one seed per prompt.

    Args:
        seeds: a sequence of `count` integers, or the first of `count` consecutive ones.
        count: number of prompts.

    Raises:
        SettingError: another number of seeds, or a seed that is not an integer in [0, 2^63).
    """
    if _is_integer(seeds):
        seeds = range(seeds, seeds + count)
    values = list(seeds) if isinstance(seeds, Iterable) else []
    if len(values) != count:
        raise SettingError(f"expected one seed for each of {count} prompts, got {seeds!r}")
    if wrong := [seed for seed in values if not (_is_integer(seed) and 0 <= seed <= MAX_SEED)]:
        raise SettingError(f"expected seeds as integers from 0 to {MAX_SEED}, got {wrong[0]!r}")
    return [int(seed) for seed in values]


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
