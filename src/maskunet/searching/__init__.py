"""Training-free masks: for given prompts and seeds, found at generation time by the gradient of a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

# Settings are read by the command line before anything heavy is imported.
_PUBLIC = {
    "PRESETS": "config",
    "SearchConfig": "config",
    "search": "search_loop",
    "SearchResult": "result",
    "SearchStep": "progress",
}

__all__ = [*_PUBLIC]


__getattr__ = exports(__name__, _PUBLIC)


if TYPE_CHECKING:
    from .config import PRESETS, SearchConfig
    from .progress import SearchStep
    from .result import SearchResult
    from .search_loop import search
