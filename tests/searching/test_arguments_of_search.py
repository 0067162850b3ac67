"""Arguments of `search` of the wrong type end in one line, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import maskunet as mu
from maskunet.errors import SettingError, TargetError


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("model", [None, "shapes", object(), torch.nn.Linear(1, 1)])
def test_what_is_no_pipeline(model: Any) -> None:
    with pytest.raises(TargetError, match="expected a Stable Diffusion pipeline, got"):
        mu.search(model, ["a"], brightness)


@pytest.mark.parametrize(
    ("option", "expected"),
    [({"decoder": 1}, "a decoder"), ({"decoder": torch.nn.Linear(1, 1)}, "a decoder"), ({"on_step": "x"}, "on_step")],
)
def test_decoders_and_callbacks(pipe: StableDiffusionPipeline, option: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingError, match=f"expected {expected}"):
        mu.search(pipe, ["a"], brightness, **option)
