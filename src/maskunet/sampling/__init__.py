"""Sampling: plain generation, one step at a time, roll-outs, and a pipeline's state while gradients flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

_PUBLIC = {
    "GeneratedImages": "result",
    "Side": "generation",
    "StepwiseSampler": "stepwise",
    "generate": "generation",
    "pipeline_side": "generation",
}

__all__ = [*_PUBLIC]

__getattr__ = exports(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .generation import Side, generate, pipeline_side
    from .result import GeneratedImages
    from .stepwise import StepwiseSampler
