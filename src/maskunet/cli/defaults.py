"""Defaults that the help states, read without importing torch, which takes seconds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..maskers.config import LowRankMaskerConfig, MaskGeneratorConfig
from ..settings import GUIDANCE_SCALE
from ..zoo import defaults as bundled

_BUNDLED_FOLDER = Path(bundled.__file__).parent / "weights" / "shapes"
#: Denoising steps of any other model.
NUM_INFERENCE_STEPS = 25
#: Steps of images that are measured; papers report FID at 50.
MEASURED_STEPS = 50


def is_bundled(model: str | None) -> bool:
    """Return whether a model is the bundled one.

    Args:
        model: value of `--model`: its name, or the path of its folder.
    """
    model = getattr(model, "model", model)
    if model is None or "\0" in model:
        return False
    return model == "shapes" or (Path(model).name == "shapes" and Path(model).resolve() == _BUNDLED_FOLDER.resolve())


def guidance_scale(model: str | None, value: float | None, other: float = GUIDANCE_SCALE) -> float:
    """Return the guidance of a model.

    Args:
        model: value of `--model`.
        value: value of `--guidance-scale`; the model's default if None.
        other: the default of any other model than the bundled one.
    """
    if value is not None:
        return value
    return bundled.GUIDANCE_SCALE if is_bundled(model) else other


def num_inference_steps(model: str | None, value: int | None, other: int = NUM_INFERENCE_STEPS) -> int:
    """Return the denoising steps of a model.

    Args:
        model: value of `--model`.
        value: value of `--steps`; the model's default if None.
        other: the default of any other model than the bundled one.
    """
    if value is not None:
        return value
    return bundled.NUM_INFERENCE_STEPS if is_bundled(model) else other


def masker_defaults() -> dict[str, Any]:
    """Return the defaults of `LowRankMaskerConfig` and `MaskGeneratorConfig` by field."""
    return asdict(MaskGeneratorConfig()) | asdict(LowRankMaskerConfig())
