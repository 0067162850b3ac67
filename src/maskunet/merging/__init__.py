"""Merge masks into weights, undo it, and write the merged model for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

_PUBLIC = {
    "MergedMasks": "merged_masks",
    "export": "export_files",
    "merge": "merge_unmerge",
    "unmerge": "merge_unmerge",
}

__all__ = [*_PUBLIC]

__getattr__ = exports(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .export_files import export
    from .merge_unmerge import merge, unmerge
    from .merged_masks import MergedMasks
