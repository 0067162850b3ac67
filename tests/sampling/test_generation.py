"""Generation: a seed means a picture, in any batch."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.errors import DataError
from maskunet.sampling import generate

PROMPTS = ["a b", "c", "d e f"]


def test_picture_repeats_in_any_batch(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=-0.2), seed=0))
    options = {"seeds": [5, 6, 7], "num_inference_steps": 2, "progress": False}
    whole = generate(pipe, PROMPTS, batch_size=3, **options).tensor
    singly = generate(pipe, PROMPTS, batch_size=1, **options).tensor
    assert whole.shape == (3, 3, 16, 16)
    assert whole.min() >= 0
    assert whole.max() <= 1
    torch.testing.assert_close(whole, singly, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole, generate(pipe, PROMPTS, batch_size=3, **options).tensor, atol=0, rtol=0)
    assert (whole - generate(pipe, PROMPTS, seeds=8, num_inference_steps=2, progress=False).tensor).abs().mean() > 1e-3


def test_negative_prompt_and_guidance_act(pipe: StableDiffusionPipeline) -> None:
    base = generate(pipe, PROMPTS, num_inference_steps=2, progress=False).tensor
    other = generate(pipe, PROMPTS, num_inference_steps=2, negative_prompt="q", progress=False).tensor
    weak = generate(pipe, PROMPTS, num_inference_steps=2, guidance_scale=1.0, progress=False).tensor
    assert not torch.equal(base, other)
    assert not torch.equal(base, weak)


def test_progress_is_told_and_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    done: list[float] = []
    options = {"num_inference_steps": 2, "batch_size": 2, "progress": False}
    told = generate(pipe, PROMPTS, on_step=done.append, **options).tensor
    torch.testing.assert_close(told, generate(pipe, PROMPTS, **options).tensor, atol=0, rtol=0)
    assert done == pytest.approx([1 / 3, 2 / 3, 5 / 6, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": ["a"], "num_inference_steps": 0}, "got 0 and 8"),
        ({"prompts": ["a"], "batch_size": 0}, "got 25 and 0"),
        ({"prompts": ["a", "b"], "seeds": [1]}, "a seed for each of 2"),
    ],
)
def test_bad_settings(pipe: StableDiffusionPipeline, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(pipe, **options)
