"""Defaults that the help states, read without importing torch, which takes seconds."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from ..searching.config import SearchConfig
from ..zoo import defaults as bundled

_PACKAGE = Path(__file__).parents[1]

#: Guidance of any other model, in every command.
GUIDANCE_SCALE: float = SearchConfig().guidance_scale
#: Denoising steps of any other model.
NUM_INFERENCE_STEPS = 25
#: Steps of images that are measured; papers report FID at 50.
MEASURED_STEPS = 50


def is_bundled(model: str | None) -> bool:
    """Return whether a model is the bundled one.

    Args:
        model: value of `--model`.
    """
    return model == "shapes"


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
    defaults: dict[str, Any] = {}
    for module in ("conditional", "generator", "low_rank"):
        tree = ast.parse((_PACKAGE / "maskers" / f"{module}.py").read_text(encoding="utf-8"))
        configs = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
        for item in (item for config in configs for item in config.body if isinstance(item, ast.AnnAssign)):
            value = item.value.args[0] if isinstance(item.value, ast.Call) else item.value
            if isinstance(item.target, ast.Name) and value is not None:
                defaults[item.target.id] = ast.literal_eval(value)
    return defaults
