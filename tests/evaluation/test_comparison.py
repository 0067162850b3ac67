"""Comparison of base and masked images: pairing, intervals, the table."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.evaluation import Comparison, compare
from maskunet.shapes.scenes import held_out_prompts


def comparison(base: torch.Tensor, masked: torch.Tensor) -> Comparison:
    right = torch.stack([base, masked])
    reasons = [[[None if ok else "wrong" for ok in run] for run in side.tolist()] for side in right]
    return Comparison(held_out_prompts(base.shape[1]), base.shape[0], right, reasons, torch.zeros(2, 0))


def test_accuracy_is_the_mean_over_tasks() -> None:
    right = torch.zeros(1, 60, dtype=torch.bool)
    right[:, 0::6] = True  # every single_object
    right[:, 1::12] = True  # every other two_object
    result = comparison(right, right)
    assert result.accuracy("base", "single_object").value == 1
    assert result.accuracy("base", "two_object").value == 0.5
    assert result.accuracy("base").value == pytest.approx(1.5 / 6)
    assert result.accuracy("base", without="position").value == pytest.approx(1.5 / 5)
    gain = result.gain()  # no change in so few prompts is a bound
    assert gain.value == 0
    assert gain.high == -gain.low > 0.03


def test_gain_is_paired() -> None:
    """Two sides that differ on a tenth of the prompts: the paired interval is narrower than either side's."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(2, 300, generator=generator) < 0.5
    masked = base.clone()
    masked[:, ::10] = True
    result = comparison(base, masked)
    gain, side = result.gain(), result.accuracy("base")
    assert gain.low > 0
    assert gain.high - gain.low < side.high - side.low
    assert gain.value == pytest.approx(result.accuracy("masked").value - side.value)


def test_repeated_prompts_stay_together() -> None:
    """600 held-out prompts are 174 distinct ones: where the prompt decides, they say what those say."""
    prompts = held_out_prompts(600)
    assert len({p.prompt for p in prompts}) == 174
    right = torch.tensor([[len(p.prompt) % 3 > 0 for p in prompts]])
    interval = comparison(right, right).accuracy("base", "counting")
    share = interval.value
    assert interval.high - interval.low > 2 * 1.96 * math.sqrt(share * (1 - share) / 8)  # 100 images, 4 prompts


def test_changed_images_are_counted_in_pairs_of_prompt_and_noise() -> None:
    base = torch.zeros(2, 60, dtype=torch.bool)
    masked = base.clone()
    masked[0, :8] = True
    base[1, 7] = True
    result = comparison(base, masked)
    assert (result.changes().mended, result.changes().spoilt) == (8, 1)
    assert (result.changes("single_object").mended, result.changes("single_object").spoilt) == (2, 0)
    table = result.to_markdown().splitlines()
    assert table[-1] == f"| mended, spoilt | | | {result.changes()} |"
    assert table[-2].startswith("| **without position** | ")


def test_both_sides_share_their_noise(pipe: StableDiffusionPipeline) -> None:
    """With masks of ones both sides have the same images; another seed has others."""
    images: dict[tuple[str, int], torch.Tensor] = {}
    prompts = held_out_prompts(6)
    generator = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=9.0), seed=0)
    mu.attach(pipe, generator)
    features = lambda x: x.mean((2, 3)) + torch.arange(3)  # noqa: E731
    result = compare(
        pipe,
        prompts,
        seeds=2,
        num_inference_steps=2,
        features=features,
        reference=torch.rand(10, 3, 16, 16),
        progress=False,
        on_images=lambda side, run, batch: images.__setitem__((side, run), batch),
    )
    torch.testing.assert_close(images["base", 0], images["masked", 0], atol=1e-5, rtol=0)
    assert not torch.equal(images["base", 0], images["base", 1])
    assert result.distances.shape == (2, 2)
    assert result.distance_gain().value == pytest.approx(0, abs=1e-4)
    assert "FID" in result.to_markdown()
