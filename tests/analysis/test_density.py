"""Mask ratios against the densities of known masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from analyses import PROMPTS, generator, schedule, values
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import AnalysisSettings, analyze
from maskunet.errors import DataError
from maskunet.maskers import RandomMasks


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_density_equals_the_masks(pipe: StableDiffusionPipeline, guidance_scale: float) -> None:
    masks = schedule(pipe)
    mu.attach(pipe, masks)
    settings = AnalysisSettings(PROMPTS, 3, guidance_scale, count=4, batch_size=1)  # rounded up to the two sets
    analysis = analyze("density", pipe, settings)
    times = sorted({r["timestep"] for r in analysis.rows if r["timestep"] != "mean"}, reverse=True)
    expected = [float(1 - masks.density()[masks.nearest(t)].mean()) for t in times]
    measured = [values(analysis.rows, "mask ratio by all", timestep=t)[0] for t in times]
    assert measured == pytest.approx(expected, abs=1e-4)
    assert analysis.settings["n"] == 4
    assert analysis.settings["masker"] == "MaskSchedule"


def test_density_of_the_conditional_half(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, generator(pipe))
    singly = analyze("density", pipe, AnalysisSettings(PROMPTS, 2, 4.0, count=2, batch_size=1))
    together = analyze("density", pipe, AnalysisSettings(PROMPTS, 2, 4.0, count=2, batch_size=2))
    assert [r["value"] for r in singly.rows] == pytest.approx([r["value"] for r in together.rows], abs=1e-3)
    with mu.record(pipe) as trace:
        latents = [torch.Generator().manual_seed(i) for i in range(2)]
        pipe(list(PROMPTS), num_inference_steps=2, guidance_scale=4.0, generator=latents, output_type="latent")
    mask = trace.calls[0].masks
    kept = sum(m[2:].float().mean() * m[0].numel() for m in mask.values()) / sum(m[0].numel() for m in mask.values())
    time = trace.timesteps[0]
    assert values(together.rows, "mask ratio by all", timestep=time) == pytest.approx([float(1 - kept)], abs=1e-4)


def test_density_over_training_and_on_xl(sdxl_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    mu.attach(sdxl_pipe, RandomMasks.for_unet(sdxl_pipe.unet, density=0.75))
    stats = tmp_path / "stats.jsonl"
    stats.write_text('{"step": 1, "loss": 1}\n{"step": 2, "density": 0.9}\n\n{"step": 4, "density": 0.8}\n')
    analysis = analyze("density", sdxl_pipe, AnalysisSettings(PROMPTS, 2, run=tmp_path))
    assert values(analysis.rows, "mask ratio over training") == pytest.approx([0.1, 0.2])
    assert analysis.answer.endswith("During training, the share went from 10.00 % at step 2 to 20.00 % at step 4.")
    assert values(analysis.rows, "mask ratio by all", timestep="mean") == pytest.approx([0.25], abs=0.02)
    for text, message in (('{"step": 1}', "has none"), ("no json", "could not read")):
        stats.write_text(text)
        with pytest.raises(DataError, match=message):
            analyze("density", sdxl_pipe, AnalysisSettings(PROMPTS, 2, run=stats))
