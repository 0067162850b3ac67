"""Mask ratios by magnitude, for masks that depend on it."""

from __future__ import annotations

import pytest
from analyses import SETTINGS, values
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import analyze
from maskunet.maskers import FixedMasks
from maskunet.targets import describe, maskable_layers


def test_weights_shows_that_the_larger_half_is_switched_off(pipe: StableDiffusionPipeline) -> None:
    network, modules = describe(pipe), maskable_layers(pipe.unet)
    masks = {}
    for layer in network.layers:
        size = modules[layer.name].weight.abs()
        masks[layer.name] = size < size.flatten().kthvalue(size.numel() // 2 + 1).values
    mu.attach(pipe, FixedMasks(masks))
    analysis = analyze("weights", pipe, SETTINGS)
    by_tenth = [values(analysis.rows, "mask ratio by magnitude", timestep="mean", tenth=k)[0] for k in range(1, 11)]
    assert by_tenth == pytest.approx([0.0] * 5 + [1.0] * 5, abs=0.02)
    assert "more often than small ones" in analysis.answer
