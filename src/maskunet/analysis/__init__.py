"""Analyses of masks: what they switch off, when, and what that does, each as data, an answer in words and a plot.

settings = AnalysisSettings(count=24, seed=0)
found = analyze("density", pipe, settings)      # of whatever is attached to the pipeline
print(found.answer)
found.save("analysis")                          # density.png, .svg, .csv, .json
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

_PUBLIC = {"Analysis": "base", "AnalysisSettings": "base", "NAMES": "base", "analyze": "registry"}

__all__ = ["NAMES", "Analysis", "AnalysisSettings", "analyze"]

__getattr__ = exports(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .base import NAMES, Analysis, AnalysisSettings
    from .registry import analyze
