"""A pipeline on disk, which the command line is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline


@pytest.fixture
def model(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
