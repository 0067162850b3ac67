"""Tiny pipelines of both styles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def make_pipe(pipe: Any, sdxl_pipe: Any) -> Callable[[str], Any]:
    """Return a tiny pipeline, "sd1" or "sdxl"."""
    return {"sd1": pipe, "sdxl": sdxl_pipe}.__getitem__
