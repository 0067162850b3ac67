"""Training-free masks: for given prompts and seeds, found at generation time by the gradient of a reward."""

from .config import PRESETS, SearchConfig
from .engine import search
from .result import SearchResult
from .sampling import StepwiseSampler

__all__ = ["PRESETS", "SearchConfig", "SearchResult", "StepwiseSampler", "search"]
