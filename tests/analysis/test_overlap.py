"""Overlaps of switched-off sets, against sets of Python."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from analyses import PROMPTS, SETTINGS, schedule, values
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import AnalysisSettings, analyze
from maskunet.analysis.overlap import Overlaps
from maskunet.errors import DataError


def test_overlaps_equal_those_of_sets() -> None:
    off = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0)) < 0.4
    overlaps = Overlaps(3, 2)
    overlaps.add(off[:, :, :30])
    overlaps.add(off[:, :, 30:])
    for i, j in combinations(range(3), 2):
        a, b = (set(off[t, 1].nonzero().flatten().tolist()) for t in (i, j))
        assert float(overlaps.between_timesteps()[1, i, j]) == pytest.approx(len(a & b) / len(a | b))
    a, b = (set(off[2, n].nonzero().flatten().tolist()) for n in range(2))
    assert float(overlaps.between_images()[2, 0, 1]) == pytest.approx(len(a & b) / len(a | b))
    assert overlaps.by_chance()[0] == pytest.approx(0.4 / 1.6, abs=0.06)


def test_masks_shows_that_v_is_constant(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, schedule(pipe))
    analysis = analyze("masks", pipe, SETTINGS)
    assert values(analysis.rows, "overlap between timesteps", projection="v") == [1]
    # Independent sets of a fifth of the weights: 0.2² / (0.4 - 0.2²).
    assert values(analysis.rows, "overlap between timesteps", projection="q") == pytest.approx([1 / 9], abs=0.03)
    assert "Over timesteps, v changes least" in analysis.answer
    assert analysis.settings["n"] == 4
    with pytest.raises(DataError, match="name of a masked layer"):
        analyze("masks", pipe, AnalysisSettings(PROMPTS, layer="conv_in"))
