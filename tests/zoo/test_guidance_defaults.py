"""One default guidance per model: 4 for the bundled one, 7.5 for any other, wherever none is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import maskunet as mu
from maskunet import zoo
from maskunet.analysis import AnalysisSettings
from maskunet.analysis.context import build_context
from maskunet.cli import defaults
from maskunet.evaluation import evaluate, measure_images
from maskunet.pretrained import bundled_path
from maskunet.sampling import StepwiseSampler, generate
from maskunet.searching import SearchConfig
from maskunet.syngen import shapes_phrases, syngen
from maskunet.training.arguments import resolve_guidance

PROMPT = "a red circle and a blue star"


@pytest.fixture(params=["bundled", "other"])
def model(request: pytest.FixtureRequest, pipe: StableDiffusionPipeline) -> tuple[Any, float]:
    """A pipeline with its default guidance."""
    return (zoo.load(), 4.0) if request.param == "bundled" else (pipe, 7.5)


def redness(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 0].mean((1, 2))


def test_functions_record_the_models_own_guidance(model: tuple[Any, float], tmp_path: Path) -> None:
    pipe, guidance = model
    options: dict[str, Any] = {"num_inference_steps": 1, "progress": False}
    assert generate(pipe, [PROMPT], **options).settings["guidance_scale"] == guidance
    assert StepwiseSampler(pipe, [PROMPT], seeds=[0], num_inference_steps=1).guidance_scale == guidance
    config = SearchConfig(num_inference_steps=1, candidates=1, iterations=0)
    assert mu.search(pipe, [PROMPT], redness, config, progress=False).config.guidance_scale == guidance
    images = syngen(pipe, [PROMPT], [0], phrases=shapes_phrases, num_inference_steps=1, steps=0)
    assert images.settings["guidance_scale"] == guidance
    settings = AnalysisSettings(prompts=(PROMPT,), num_inference_steps=1)
    context = build_context(pipe, settings, 1, lambda share, task: None)
    assert context.record()["guidance_scale"] == context.settings.guidance_scale == guidance
    trained = resolve_guidance(pipe, mu.TrainConfig())
    assert trained.validation_guidance_scale == trained.reward_guidance_scale == guidance
    assert resolve_guidance(pipe, mu.TrainConfig(reward_guidance_scale=2.0)).reward_guidance_scale == 2.0


def test_the_bundled_models_benchmark_and_measurement_have_its_guidance(tmp_path: Path) -> None:
    pipe, options = zoo.load(), {"num_inference_steps": 1, "progress": False}
    report = evaluate(pipe, limit=1, images_per_prompt=1, sides="base", **options)
    assert report.to_dict()["settings"]["base"]["guidance_scale"] == 4.0
    measured = measure_images(tmp_path, "shapes", pipe=pipe, prompts=[PROMPT], **options)
    assert measured.settings["settings"]["guidance_scale"] == 4.0


def test_a_default_gives_the_images_of_the_same_number(model: tuple[Any, float]) -> None:
    pipe, guidance = model
    options: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
    assert torch.equal(
        generate(pipe, [PROMPT], **options).tensor, generate(pipe, [PROMPT], guidance_scale=guidance, **options).tensor
    )


def test_commands_know_the_bundled_model_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    for name in ("shapes", str(bundled_path("shapes"))):
        assert defaults.is_bundled(name)
        assert defaults.guidance_scale(name, None) == 4.0
    for name in (None, "user/shapes", str(tmp_path / "shapes"), "x\0y", "x" * 5000):
        assert not defaults.is_bundled(name)
        assert defaults.guidance_scale(name, None) == 7.5
