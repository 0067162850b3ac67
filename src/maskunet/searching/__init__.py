"""Search at generation time: starting noises and masks for given prompts, by the gradient of a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

# The command line reads settings before it imports anything heavy.
_PUBLIC = {
    "PRESETS": "config",
    "SearchConfig": "config",
    "search": "search_loop",
    "SearchResult": "result",
    "SearchState": "progress",
    "StepCallback": "progress",
}

__all__ = [*_PUBLIC]


__getattr__ = exports(__name__, _PUBLIC)


if TYPE_CHECKING:
    from .config import PRESETS, SearchConfig
    from .progress import SearchState, StepCallback
    from .result import SearchResult
    from .search_loop import search
