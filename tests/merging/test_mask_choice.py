"""Masks that depend on something, merged by their majority over a run, and what that loses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

import maskunet as mu
from maskunet import targets
from maskunet.errors import TargetError
from maskunet.maskers import Masker, MaskSchedule
from maskunet.merging.mask_choice import constant_masks, majority_masks

PROMPTS = ["a b", "c d"]
RUN: dict[str, Any] = {"seeds": 3, "num_inference_steps": 3, "guidance_scale": 4.0}
NAME = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def randomised(masker: Masker) -> Masker:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return masker


def schedule(pipe: Any, samples: int, half: str | None) -> MaskSchedule:
    result = MaskSchedule(targets.describe(pipe, [NAME]), [900.0, 500.0, 20.0], samples, half)
    for i in range(3):
        result.set(i, {NAME: torch.rand(samples, 32, 32, generator=torch.Generator().manual_seed(i)) < 0.6})
    return result


MASKERS: dict[str, Callable[[Any], Masker]] = {
    "low rank": lambda pipe: randomised(mu.LowRankMasker.for_unet(pipe, mu.LowRankMaskerConfig(rank=4))),
    "timestep alone": lambda pipe: randomised(
        mu.LowRankMasker.for_unet(pipe, mu.LowRankMaskerConfig(rank=4, use_sample=False))
    ),
    "generator": lambda pipe: randomised(mu.MaskGenerator.for_unet(pipe)),
    "random": lambda pipe: mu.maskers.RandomMasks.for_unet(pipe, density=0.6),
    "table per prompt": lambda pipe: randomised(mu.maskers.MaskTable.for_unet(pipe, samples=2)),
    "schedule": lambda pipe: schedule(pipe, 1, None),
    "schedule per prompt": lambda pipe: schedule(pipe, 2, None),
}


def recorded_masks(pipe: Any, masker: Masker) -> list[dict[str, Tensor]]:
    """Masks of every call and row of the run, by layer."""
    mu.attach(pipe, masker)
    with mu.record(pipe) as trace:
        mu.sampling.generate(pipe, PROMPTS, batch_size=2, progress=False, **RUN)
    mu.detach(pipe)
    # A record that holds one mask, or one per prompt, stands for all rows alike.
    return [call.masks for call in trace.calls]


@pytest.mark.parametrize("name", MASKERS)
def test_the_majority_and_what_it_loses(pipe: Any, name: str) -> None:
    masker = MASKERS[name](pipe)
    calls = recorded_masks(pipe, masker)
    assert len(calls) == 3
    assert masker.conditions
    masks, disagreement = majority_masks(pipe, masker, PROMPTS, **RUN)
    lost = weights = 0.0
    for layer in masker.network.layers:
        rows = torch.cat([call[layer.name] for call in calls]).double()
        expected = rows.mean(0) >= 0.5
        assert torch.equal(masks[layer.name], expected)
        lost += float((rows != expected).double().mean()) * layer.weights
        weights += layer.weights
    assert disagreement == pytest.approx(lost / weights, abs=1e-9)
    assert 0 < disagreement < 0.5


def test_merging_a_majority(pipe: Any, draw_latents: Callable[..., Tensor]) -> None:
    masker = MASKERS["low rank"](pipe)
    base = draw_latents(pipe, ["ab"], [0])
    masks, disagreement = majority_masks(pipe, masker, PROMPTS, **RUN)
    merged = mu.merge(pipe, masker, prompts=PROMPTS, **RUN)
    assert merged.disagreement == disagreement
    latents = draw_latents(pipe, ["ab"], [0])
    mu.unmerge(pipe)
    assert torch.equal(draw_latents(pipe, ["ab"], [0]), base)
    mu.merge(pipe, mu.maskers.FixedMasks(masks))
    assert torch.equal(draw_latents(pipe, ["ab"], [0]), latents)


def test_rows_without_masks_do_not_vote_but_count(pipe: Any) -> None:
    masker = schedule(pipe, 1, "conditional")
    masks, disagreement = majority_masks(pipe, masker, ["ab"], seeds=0, num_inference_steps=3, guidance_scale=4.0)
    pipe.scheduler.set_timesteps(3)
    indices = [masker.nearest(t) for t in pipe.scheduler.timesteps]
    rows = torch.cat([masker.get(index, NAME) for index in indices])
    expected = rows.float().mean(0) >= 0.5
    assert torch.equal(masks[NAME], expected)
    halves = torch.cat([rows, torch.ones_like(rows)])  # the unconditional half keeps every weight
    assert disagreement == pytest.approx(float((halves != expected).float().mean()), abs=1e-6)
    unguided, lost = majority_masks(pipe, masker, ["ab"], seeds=0, num_inference_steps=3, guidance_scale=1.0)
    assert torch.equal(unguided[NAME], expected)
    assert lost == pytest.approx(float((rows != expected).float().mean()), abs=1e-6)


def test_masks_that_are_always_the_same_lose_nothing(pipe: Any) -> None:
    config = mu.LowRankMaskerConfig(rank=4, use_timestep=False, use_sample=False)
    masker = randomised(mu.LowRankMasker.for_unet(pipe, config))
    masks, disagreement = majority_masks(pipe, masker, PROMPTS, **RUN)
    exact = constant_masks(masker, torch.device("cpu"))
    assert disagreement == 0
    assert all(torch.equal(masks[name], mask) for name, mask in exact.items())


def test_prompts_that_do_not_fit_the_masks_are_refused(pipe: Any) -> None:
    with pytest.raises(TargetError, match="expected a multiple of 2 prompts for 2 masks per layer, got 1"):
        mu.merge(pipe, schedule(pipe, 2, None), prompts=["ab"], num_inference_steps=2)
    assert not any("forward" in module.__dict__ for module in pipe.unet.modules())


def test_a_pipeline_that_needs_an_image_is_refused(pipe: Any) -> None:
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    other = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    masker = MASKERS["low rank"](pipe)
    with pytest.raises(
        TargetError, match=r"got StableDiffusionImg2ImgPipeline; pass StableDiffusionPipeline\.from_pipe"
    ):
        mu.merge(other, masker, prompts=["ab"])
    constant = mu.LowRankMasker.for_unet(pipe, mu.LowRankMaskerConfig(use_timestep=False, use_sample=False))
    assert mu.merge(other, constant).density == 1


def test_a_layer_that_a_run_does_not_reach(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masker = schedule(pipe, 1, None)
    attention = pipe.unet.get_submodule(NAME.rpartition(".")[0])
    monkeypatch.setattr(attention, "processor", lambda attn, hidden_states, *args, **kwargs: hidden_states)
    with pytest.raises(TargetError, match="was not called in it"):
        mu.merge(pipe, masker, prompts=["ab"], num_inference_steps=2)
