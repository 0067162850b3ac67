"""Random masks: histograms, progress, and the pipeline afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from analyses import PROMPTS, generator, values
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import AnalysisSettings, analyze
from maskunet.attaching import attachment_of


def test_random_restores_the_attached_masker(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    attachment = mu.attach(pipe, generator(pipe))
    shares: list[float] = []
    settings = AnalysisSettings(PROMPTS, 2, rates=(0.1, 0.5), mask_seeds=2)
    analysis = analyze("random", pipe, settings, progress=lambda share, task: shares.append(share))
    assert attachment_of(pipe) is attachment
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert "Random masks change an image" in analysis.answer
    low, high = values(analysis.rows, "change of an image")
    assert 0 < low < high
    removed = sum(values(analysis.rows, "weights, removed at step 1"))
    assert removed / sum(values(analysis.rows, "weights, all")) == pytest.approx(0.5, abs=0.03)
    assert not values(analysis.rows, "FID minus base")
    assert analysis.settings["masker"] == "random masks"
    analysis.save(tmp_path)
