"""Whether a pipeline is the bundled model, whose images the judge of the shapes world can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..pipelines import is_bundled

__all__ = ["is_bundled", "model_name"]


def model_name(pipe: Any) -> str:
    """Return a pipeline's name for records: "shapes", a hub id, or the last part of a folder.

    Args:
        pipe: a pipeline.
    """
    if is_bundled(pipe):
        return "shapes"
    name = str(getattr(pipe, "name_or_path", "") or "")
    # Records must not show the paths of this machine.
    return (Path(name).name if Path(name).is_dir() else name) or "a pipeline"
