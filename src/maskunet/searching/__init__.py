"""Training-free masks: for given prompts and seeds, found at generation time by the gradient of a reward."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Settings are read by the command line before anything heavy is imported.
_PUBLIC = {
    "PRESETS": "config",
    "SearchConfig": "config",
    "search": "engine",
    "SearchResult": "result",
    "StepwiseSampler": "sampling",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


if TYPE_CHECKING:
    from .config import PRESETS, SearchConfig
    from .engine import search
    from .result import SearchResult
    from .sampling import StepwiseSampler
