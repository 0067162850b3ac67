"""The bundled pipeline, loaded once."""

from __future__ import annotations

from typing import Any

import pytest

import maskunet as mu


@pytest.fixture(scope="session")
def shapes_pipe() -> Any:
    return mu.zoo.load("shapes")
