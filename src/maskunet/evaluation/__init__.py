"""Evaluation: generate at scale, judge, compare with the base model, report."""

from .comparison import Comparison, compare
from .generation import generate

__all__ = ["Comparison", "compare", "generate"]
