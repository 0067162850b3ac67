"""Generation: a seed means the same image in any batch."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.errors import DataError, SettingError, TargetError
from maskunet.sampling import generate, pipeline_side

PROMPTS = ["a b", "c", "d e f"]


def conditional_masker(pipe: StableDiffusionPipeline) -> mu.MaskGenerator:
    """A mask generator whose random weights give every sample masks of its own."""
    masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=0.5), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return masker


def test_an_image_is_the_same_in_any_batch(pipe: StableDiffusionPipeline) -> None:
    options = {"seeds": [5, 6, 7], "num_inference_steps": 2, "progress": False}
    base = generate(pipe, PROMPTS, **options).tensor
    mu.attach(pipe, conditional_masker(pipe))
    together = generate(pipe, PROMPTS, batch_size=3, **options).tensor
    singly = generate(pipe, PROMPTS, batch_size=1, **options).tensor
    assert together.shape == (3, 3, 16, 16)
    assert together.min() >= 0
    assert together.max() <= 1
    assert (together - base).abs().mean() > 1e-3
    torch.testing.assert_close(together, singly, atol=1e-4, rtol=0)
    assert torch.equal(together, generate(pipe, PROMPTS, batch_size=3, **options).tensor)
    other = generate(pipe, PROMPTS, seeds=8, num_inference_steps=2, progress=False)
    assert other.seeds == [8, 9, 10]
    assert (together - other.tensor).abs().mean() > 1e-3


def test_negative_prompt_and_guidance_act(pipe: StableDiffusionPipeline) -> None:
    base = generate(pipe, PROMPTS, num_inference_steps=2, progress=False).tensor
    negative = generate(pipe, PROMPTS, num_inference_steps=2, negative_prompt="q", progress=False).tensor
    unguided = generate(pipe, PROMPTS, num_inference_steps=2, guidance_scale=1.0, progress=False).tensor
    assert not torch.equal(base, negative)
    assert not torch.equal(base, unguided)


def test_on_step_receives_the_finished_share_and_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    shares: list[float] = []
    options = {"num_inference_steps": 2, "batch_size": 2, "progress": False}
    observed = generate(pipe, PROMPTS, on_step=shares.append, **options).tensor
    assert torch.equal(observed, generate(pipe, PROMPTS, **options).tensor)
    assert shares == pytest.approx([1 / 3, 2 / 3, 5 / 6, 1])


def test_the_side_of_a_pipeline_generates_with_or_without_its_masks(pipe: StableDiffusionPipeline) -> None:
    options = {"num_inference_steps": 2, "progress": False}
    base = generate(pipe, PROMPTS, seeds=3, **options).tensor
    mu.attach(pipe, conditional_masker(pipe))
    masked = generate(pipe, PROMPTS, seeds=3, **options).tensor
    assert torch.equal(pipeline_side(pipe, num_inference_steps=2)(PROMPTS, [3, 4, 5]), masked)
    assert torch.equal(pipeline_side(pipe, masks=False, num_inference_steps=2)(PROMPTS, [3, 4, 5]), base)
    assert not torch.equal(masked, base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": "a"}, "put it into a list"),
        ({"prompts": ["a", 1]}, "prompts as strings, got 1"),
        ({"prompts": ["a", "b"], "seeds": [1]}, "one seed for each of 2 prompts"),
    ],
)
def test_bad_prompts_and_seeds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(None, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", 2.5),
        ("guidance_scale", float("nan")),
        ("guidance_scale", -1.0),
        ("negative_prompt", 3),
        ("batch_size", 0),
    ],
)
def test_bad_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"expected {option} to be .*, got") as error:
        generate(None, ["a"], **{option: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, True, None])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(SettingError, match="seeds as integers from 0"):
        generate(None, ["a"], seeds=[seed])  # type: ignore[list-item]


@pytest.mark.parametrize("model", [None, 1, "x", torch.nn.Linear(1, 1)])
def test_what_is_no_pipeline_is_refused(model: Any) -> None:
    with pytest.raises(TargetError, match="expected a Stable Diffusion pipeline, got"):
        generate(model, ["a"])


@pytest.mark.parametrize("prompts", [{"a": 1}, {"a"}, b"a"])
def test_prompts_without_an_order_are_refused(pipe: Any, prompts: Any) -> None:
    with pytest.raises(DataError, match="expected a list of at least one prompt"):
        generate(pipe, prompts)


def test_rescaled_guidance_and_size_reach_the_pipeline_and_the_record(pipe: StableDiffusionPipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 9.0, "guidance_rescale": 0.7}
    result = generate(pipe, PROMPTS[:1], seeds=[3], height=16, width=32, progress=False, **options)
    generator = torch.Generator().manual_seed(3)
    expected = pipe(PROMPTS[0], height=16, width=32, generator=generator, output_type="np", **options).images
    assert torch.equal(result.tensor, torch.from_numpy(expected).permute(0, 3, 1, 2))
    settings = {name: result.record(0)[name] for name in ("guidance_rescale", "height", "width")}
    assert settings == {"guidance_rescale": 0.7, "height": 16, "width": 32}
    # Without them the record is what it was.
    plain = generate(pipe, PROMPTS[:1], num_inference_steps=1, progress=False).record(0)
    assert not {"guidance_rescale", "height", "width"} & plain.keys()
    assert plain["guidance_scale"] == 7.5


def test_options_that_the_pipeline_does_not_take_are_refused(pipe: StableDiffusionPipeline) -> None:
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
    with pytest.raises(SettingError, match="takes guidance_rescale, StableDiffusionImg2ImgPipeline does not"):
        generate(other, ["a"], guidance_rescale=0.7, progress=False)
    with pytest.raises(SettingError, match="height in multiples of 2, got 15"):
        generate(pipe, ["a"], height=15, progress=False)
