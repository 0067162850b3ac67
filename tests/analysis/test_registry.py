"""Run analyses by name: masks without effect, single images, wrong arguments."""

from __future__ import annotations

import pytest
from analyses import PROMPTS, SETTINGS, schedule
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import NAMES, AnalysisSettings, analyze
from maskunet.errors import DataError, SettingError, TargetError
from maskunet.maskers import RandomMasks


def test_answers_for_masks_without_effect(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=1.0))
    assert "keep every weight" in analyze("density", pipe, SETTINGS).answer
    assert "nothing to compare" in analyze("masks", pipe, SETTINGS).answer
    assert "No weight" in analyze("weights", pipe, SETTINGS).answer
    assert "nothing appears measurably earlier or later" in analyze("emergence", pipe, SETTINGS).answer


def test_a_search_result_of_one_prompt(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, schedule(pipe, 1))
    settings = AnalysisSettings(("a b",), num_inference_steps=3, mask_seeds=1, rates=(0.2,))
    for name in ("random", "density", "masks", "weights", "emergence"):
        analysis = analyze(name, pipe, settings)
        assert analysis.settings["n"] == 1
        assert "nan" not in analysis.answer
        assert analysis.draw().get_suptitle().startswith(analysis.title)


def test_wrong_arguments_are_refused(pipe: StableDiffusionPipeline) -> None:
    assert set(NAMES) == {"random", "density", "masks", "weights", "emergence", "samples"}
    with pytest.raises(SettingError, match="expected an analysis"):
        analyze("mask", pipe, SETTINGS)
    with pytest.raises(TargetError, match="none is"):
        analyze("density", pipe, SETTINGS)
    mu.attach(pipe, schedule(pipe))
    with mu.disabled(pipe), pytest.raises(TargetError, match="switched off"):
        analyze("masks", pipe, SETTINGS)
    with pytest.raises(DataError, match="only the bundled model has its own"):
        analyze("density", pipe)
    with pytest.raises(TargetError, match="multiple of 2 prompts"):
        analyze("density", pipe, AnalysisSettings(PROMPTS, 2, count=3))
    with pytest.raises(DataError, match="--reference"):
        analyze("samples", pipe, SETTINGS)
    with pytest.raises(DataError, match="at least 3 images"):
        analyze("samples", pipe, AnalysisSettings(PROMPTS))
