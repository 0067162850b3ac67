"""The stepwise loop gives what the pipeline gives, for every scheduler of the family."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from maskunet.errors import DataError
from maskunet.sampling import StepwiseSampler

SCHEDULERS = [
    ("DDIMScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("HeunDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("DDPMScheduler", {}),
]


def sampled(pipe: Any, **options: Any) -> torch.Tensor:
    sampler = StepwiseSampler(pipe, ["a red circle", "b"], seeds=[3, 9], num_inference_steps=4, **options)
    with torch.no_grad():
        while not sampler.finished:
            sampler.advance(sampler.predict())
        return sampler.decode(sampler.latents)


def generated(pipe: Any, **options: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(s) for s in (3, 9)]
    out = pipe(["a red circle", "b"], num_inference_steps=4, generator=generators, output_type="pt", **options)
    return out.images


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "changes"), SCHEDULERS)
def test_equals_the_pipeline(make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], kind: str) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **changes)
    # Ours first: the pipeline's scheduler has not been set to these steps yet.
    for options in ({"guidance_scale": 5.0}, {"guidance_scale": 1.0}):
        torch.testing.assert_close(sampled(pipe, **options), generated(pipe, **options), atol=1e-5, rtol=1e-5)


def test_equals_the_pipeline_xl_and_negative_prompts(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sdxl")
    options: dict[str, Any] = {"guidance_scale": 5.0, "negative_prompt": "ugly", "height": 16, "width": 32}
    negative = {**options, "negative_prompt": ["ugly"] * 2}
    torch.testing.assert_close(sampled(pipe, **options), generated(pipe, **negative), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("name", "changes"), [s for s in SCHEDULERS if s[0] not in ("LMSDiscreteScheduler",)])
def test_predicted_x0_is_right(make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], kind: str) -> None:
    """Noise a known picture as the scheduler would; the exact output must give it back."""
    pipe = make_pipe("sd1")
    if kind == "sample" and name in ("PNDMScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        pytest.skip("the scheduler itself has no such prediction")
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **changes)
    sampler = StepwiseSampler(pipe, ["a"], seeds=[0], num_inference_steps=4, guidance_scale=1.0)
    clean, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    alpha, sigma = sampler.scales()
    assert alpha**2 + sigma**2 == pytest.approx(1)
    ratio = float(sampler.scheduler.init_noise_sigma) / sigma if sampler.scheduler.init_noise_sigma != 1 else 1.0
    sampler.latents = (alpha * clean + sigma * noise) * (ratio if ratio != 1.0 else 1.0)
    torch.testing.assert_close(sampler.scaled(), alpha * clean + sigma * noise, atol=2e-3, rtol=1e-2)
    scaled = sampler.scaled()
    exact = (scaled - alpha * clean) / sigma  # the noise, whatever rounding the scaling had
    output = {"epsilon": exact, "v_prediction": alpha * exact - sigma * clean, "sample": clean}[kind]
    torch.testing.assert_close(sampler.pred_x0(output), clean, atol=2e-4 / alpha, rtol=1e-3)


def test_the_scheduler_of_the_pipeline_is_left_alone(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    before = dict(vars(pipe.scheduler))
    sampled(pipe, guidance_scale=5.0)
    assert all(vars(pipe.scheduler)[k] is v for k, v in before.items())


def test_cut_prompts_are_named(make_pipe: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    pipe = make_pipe("sd1")
    words = " ".join(["a"] * pipe.tokenizer.model_max_length) + " z"
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        StepwiseSampler(pipe, [words], seeds=[0], num_inference_steps=1, guidance_scale=1.0)
    (record,) = [r for r in caplog.records if r.name.startswith("maskunet")]
    assert "cut off" in record.getMessage()
    assert "z" in record.getMessage().rpartition("cut off")[2]
    caplog.clear()
    options: dict[str, Any] = {"seeds": [0], "num_inference_steps": 1, "guidance_scale": 4.0}
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        StepwiseSampler(pipe, [words], **options)  # said before
        StepwiseSampler(pipe, ["a"], negative_prompt=words + " y", **options)
    (record,) = [r for r in caplog.records if r.name.startswith("maskunet")]
    assert "the negative prompt has" in record.getMessage()


def test_wrong_settings() -> None:
    with pytest.raises(DataError, match="a seed for each"):
        StepwiseSampler(None, ["a"], seeds=[], num_inference_steps=1, guidance_scale=1.0)
    with pytest.raises(DataError, match="denoising step"):
        StepwiseSampler(None, ["a"], seeds=[1], num_inference_steps=0, guidance_scale=1.0)
