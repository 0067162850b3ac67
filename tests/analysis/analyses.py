"""Maskers and settings that the tests of all analyses share."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import AnalysisSettings
from maskunet.analysis.layer_names import projection_name
from maskunet.maskers import MaskSchedule
from maskunet.targets import describe

PROMPTS = ("a b", "c d")
SETTINGS = AnalysisSettings(PROMPTS, num_inference_steps=3, count=4, batch_size=2)


def values(rows: list[dict[str, Any]], measure: str, **keys: Any) -> list[float]:
    """Values of a measure, in order."""
    return [
        r["value"] for r in rows if r["measure"] == measure and all(r.get(key) == value for key, value in keys.items())
    ]


def generator(pipe: StableDiffusionPipeline) -> mu.MaskGenerator:
    """A masker whose masks depend on timestep and sample."""
    masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=-0.2), seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(masker.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.3 * noise)
    return masker.eval()


def schedule(pipe: StableDiffusionPipeline, samples: int = 2) -> MaskSchedule:
    """Masks as a search returns them: other bits at each of three timesteps and per sample, but v keeps its bits."""
    network = describe(pipe)
    masks = MaskSchedule(network, [667.0, 334.0, 1.0], samples)
    for i in range(3):
        for k, layer in enumerate(network.layers):
            number = k if projection_name(layer.name) == "v" else 100 * i + k
            draw = torch.Generator().manual_seed(number)
            masks.set(i, {layer.name: torch.rand(samples, *layer.shape, generator=draw) < 0.8})
    return masks
