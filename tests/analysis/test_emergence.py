"""Steps until an image appears, and which images the plot shows."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import AnalysisSettings, emergence
from maskunet.analysis.context import build_context
from maskunet.analysis.emergence import half_distance_step, settled_step
from maskunet.maskers import RandomMasks


def test_steps_until_an_image_appears() -> None:
    distances = torch.tensor([[1.0, 1.0], [0.4, 0.4], [0.6, 0.3], [0.0, 0.0]])
    assert half_distance_step(distances).tolist() == [4, 2]
    right = torch.tensor([[False, True, False], [True, True, False], [True, True, False]])
    assert settled_step(right)[:2].tolist() == [2, 1]
    assert settled_step(right)[2].isnan()


def test_examples_belong_to_their_prompts(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.5))
    settings = AnalysisSettings(("a", "b", "c"), num_inference_steps=2, batch_size=1)
    context = build_context(pipe, settings, 1, lambda share, task: None)
    trajectory, _ = emergence._trajectory(context, "masked", (0, 1))
    assert trajectory.shown.shape[1] == 2
    assert trajectory.final.shape[0] == 3
    last, shown = (trajectory.final[:2] * 255).round(), trajectory.shown[-1]
    assert (shown.float() - last).abs().mean() < (shown.flip(0).float() - last).abs().mean()
