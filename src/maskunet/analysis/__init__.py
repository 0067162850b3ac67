"""Analyses of masks: which weights they switch off, when, and the effect, each as data, an answer in words and a plot.

analysis = analyze("density", pipe, AnalysisSettings(count=24, seed=0))    # of the masks attached to the pipeline
print(analysis.answer)
analysis.save("analysis")                                                  # density.png, .csv, .json
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
