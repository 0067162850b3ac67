"""The stepwise loop returns what the pipeline returns, for every scheduler of the family."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from maskunet import zoo
from maskunet.errors import DataError, SettingError
from maskunet.sampling import StepwiseSampler, generate
from maskunet.sampling.supported_pipelines import check_steps

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
        while not sampler.is_finished:
            sampler.advance(sampler.predict())
        return sampler.decode(sampler.latents)


def generated(pipe: Any, **options: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(s) for s in (3, 9)]
    options |= {"num_inference_steps": 4, "generator": generators, "output_type": "pt"}
    return pipe(["a red circle", "b"], **options).images


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "changes"), SCHEDULERS)
def test_equals_the_pipeline(make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], kind: str) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **changes)
    # The sampler first, so that the pipeline's scheduler has not been set to these steps yet.
    for options in ({"guidance_scale": 5.0}, {"guidance_scale": 1.0}):
        torch.testing.assert_close(sampled(pipe, **options), generated(pipe, **options), atol=1e-5, rtol=1e-5)


def test_equals_the_pipeline_xl_and_negative_prompts(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sdxl")
    options: dict[str, Any] = {"guidance_scale": 5.0, "negative_prompt": "ugly", "height": 16, "width": 32}
    negative = {**options, "negative_prompt": ["ugly"] * 2}
    torch.testing.assert_close(sampled(pipe, **options), generated(pipe, **negative), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", ["sd1", "sdxl"])
def test_equals_the_pipeline_with_rescaled_guidance(make_pipe: Callable[..., Any], style: str) -> None:
    pipe = make_pipe(style)
    options = {"guidance_scale": 9.0, "guidance_rescale": 0.7}
    rescaled = sampled(pipe, **options)
    torch.testing.assert_close(rescaled, generated(pipe, **options), atol=1e-5, rtol=1e-5)
    assert (rescaled - sampled(pipe, guidance_scale=9.0)).abs().max() > 0.01


@pytest.mark.parametrize("style", ["sd1", "sdxl"])
def test_equals_the_pipeline_with_statistics_of_latents(make_pipe: Callable[..., Any], style: str) -> None:
    """As Playground 2.5 has them; the pipelines of SD 1.x ignore them."""
    pipe = make_pipe(style)
    plain = sampled(pipe, guidance_scale=5.0)
    pipe.vae = copy.deepcopy(pipe.vae)
    pipe.vae.register_to_config(latents_mean=[-1.6, 1.2, 0.4, -0.9], latents_std=[8.4, 5.1, 3.0, 0.7])
    scaled = sampled(pipe, guidance_scale=5.0)
    torch.testing.assert_close(scaled, generated(pipe, guidance_scale=5.0), atol=1e-6, rtol=1e-6)
    assert torch.equal(scaled, plain) == (style == "sd1")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 0.5}),
        ("DDIMScheduler", {"clip_sample": True, "thresholding": True, "sample_max_value": 1.2}),
        ("DDIMScheduler", {"clip_sample": False}),
        ("DDPMScheduler", {"clip_sample": True, "clip_sample_range": 0.5}),
        ("DDPMScheduler", {"clip_sample": True, "thresholding": True, "sample_max_value": 1.2}),
        ("EulerDiscreteScheduler", {}),
    ],
)
def test_predicted_x0_is_the_one_that_the_step_returns(
    make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], kind: str
) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **changes)
    sampler = StepwiseSampler(pipe, ["a", "b"], seeds=[0, 1], num_inference_steps=4, guidance_scale=4.0)
    with torch.no_grad():
        sampler.advance(sampler.predict())
        output = sampler.predict()
        clean = sampler.pred_x0(output)
        step = copy.deepcopy(sampler.scheduler).step(output, sampler.timestep, sampler.latents)
    torch.testing.assert_close(clean, step.pred_original_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("is_thresholded", [True, False])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverSinglestepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
    ],
)
def test_predicted_x0_is_the_one_that_the_solver_integrates(
    make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], kind: str, is_thresholded: bool
) -> None:
    pipe = make_pipe("sd1")
    thresholds = {"thresholding": is_thresholded, "sample_max_value": 1.2}
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **changes, **thresholds)
    sampler = StepwiseSampler(pipe, ["a", "b"], seeds=[0, 1], num_inference_steps=4, guidance_scale=4.0)
    with torch.no_grad():
        sampler.advance(sampler.predict())
        output = sampler.predict()
        clean = sampler.pred_x0(output)
        expected = sampler.scheduler.convert_model_output(output, sample=sampler.latents)
    torch.testing.assert_close(clean, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_solvers_of_the_noise_threshold_the_clean_latents_where_diffusers_does(make_pipe: Callable[..., Any]) -> None:
    """DEIS returns the noise, from which its clean latents follow; UniPC in this mode thresholds none."""
    pipe = make_pipe("sd1")
    for name, changes in (
        ("DEISMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ):
        pipe.scheduler = getattr(diffusers, name)(thresholding=True, sample_max_value=1.2, **changes)
        sampler = StepwiseSampler(pipe, ["a"], seeds=[0], num_inference_steps=4, guidance_scale=4.0)
        with torch.no_grad():
            output, scaled = sampler.predict(), sampler.scaled_latents()
            noise = sampler.scheduler.convert_model_output(output, sample=sampler.latents)
        alpha, sigma = sampler.scales()
        expected = (scaled - sigma * noise) / alpha
        torch.testing.assert_close(sampler.pred_x0(output), expected, atol=2e-4 / alpha, rtol=1e-4)


def test_heun_clips_in_both_of_its_halves(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = diffusers.HeunDiscreteScheduler(clip_sample=True, clip_sample_range=0.5)
    sampler = StepwiseSampler(pipe, ["a"], seeds=[0], num_inference_steps=4, guidance_scale=4.0)
    with torch.no_grad():
        output = sampler.predict()
        clean, before = sampler.pred_x0(output), sampler.latents
        sampler.advance(output)
    sigma, sigma_next = sampler.scheduler.sigmas[0], sampler.scheduler.sigmas[1]
    torch.testing.assert_close(sampler.latents, before + (before - clean) / sigma * (sigma_next - sigma))
    assert clean.abs().max() <= 0.5


def test_a_setting_that_the_step_does_not_read_changes_nothing(make_pipe: Callable[..., Any]) -> None:
    """`from_config` hands `clip_sample` on to schedulers that do not clip."""
    pipe = make_pipe("sd1")
    config = diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=0.1).config
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    assert pipe.scheduler.config.clip_sample
    sampler = StepwiseSampler(pipe, ["a"], seeds=[0], num_inference_steps=4, guidance_scale=4.0)
    with torch.no_grad():
        output = sampler.predict()
        step = copy.deepcopy(sampler.scheduler).step(output, sampler.timestep, sampler.latents)
    torch.testing.assert_close(sampler.pred_x0(output), step.pred_original_sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("name", "changes"), [s for s in SCHEDULERS if s[0] not in ("LMSDiscreteScheduler",)])
def test_predicted_x0_is_right(make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], kind: str) -> None:
    """Noise a known image as the scheduler would; the exact output must return it."""
    pipe = make_pipe("sd1")
    if kind == "sample" and name in ("PNDMScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        pytest.skip("the scheduler itself has no such prediction")
    unclipped = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **changes, **unclipped)
    sampler = StepwiseSampler(pipe, ["a"], seeds=[0], num_inference_steps=4, guidance_scale=1.0)
    clean, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    alpha, sigma = sampler.scales()
    assert alpha**2 + sigma**2 == pytest.approx(1)
    ratio = float(sampler.scheduler.init_noise_sigma) / sigma if sampler.scheduler.init_noise_sigma != 1 else 1.0
    sampler.latents = (alpha * clean + sigma * noise) * (ratio if ratio != 1.0 else 1.0)
    torch.testing.assert_close(sampler.scaled_latents(), alpha * clean + sigma * noise, atol=2e-3, rtol=1e-2)
    scaled = sampler.scaled_latents()
    exact = (scaled - alpha * clean) / sigma  # the noise, with the rounding of the scaling
    output = {"epsilon": exact, "v_prediction": alpha * exact - sigma * clean, "sample": clean}[kind]
    torch.testing.assert_close(sampler.pred_x0(output), clean, atol=2e-4 / alpha, rtol=1e-3)


def test_the_scheduler_of_the_pipeline_does_not_change(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    state = dict(vars(pipe.scheduler))
    sampled(pipe, guidance_scale=5.0)
    assert all(vars(pipe.scheduler)[k] is v for k, v in state.items())


def test_truncated_prompts_are_reported_once(make_pipe: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
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
        StepwiseSampler(pipe, [words], **options)  # reported before
        StepwiseSampler(pipe, ["a"], negative_prompt=words + " y", **options)
    (record,) = [r for r in caplog.records if r.name.startswith("maskunet")]
    assert "the negative prompt has" in record.getMessage()


@pytest.mark.parametrize("style", ["sd1", "sdxl"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_some_samples_are_computed_as_in_the_batch(make_pipe: Callable[..., Any], style: str, guidance: float) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": guidance}
    sampler = StepwiseSampler(make_pipe(style), ["a b", "c d", "e f"], seeds=[4, 7, 9], **options)
    with torch.no_grad():
        output, some = sampler.predict(), sampler.predict([0, 2])
        torch.testing.assert_close(some, output[[0, 2]], atol=1e-5, rtol=1e-4)
        clean = sampler.pred_x0(output)
        torch.testing.assert_close(sampler.pred_x0(some, [0, 2]), clean[[0, 2]], atol=1e-4, rtol=1e-4)
        if guidance > 1:
            half = sampler.predict_half(conditional=True)
            assert torch.allclose(sampler.predict_half(conditional=True, samples=[1]), half[[1]], atol=1e-5)
            halves = (sampler.predict_half(conditional=False), half)
            torch.testing.assert_close(sampler.apply_guidance(*halves), output, atol=1e-4, rtol=1e-4)


def test_a_sampler_with_other_seeds_is_a_new_one(make_pipe: Callable[..., Any]) -> None:
    pipe, prompts = make_pipe("sd1"), ["a b", "c d"]
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    options = {"num_inference_steps": 7, "guidance_scale": 4.0}
    first = StepwiseSampler(pipe, prompts, seeds=[1, 2], **options)
    with torch.no_grad():
        first.advance(first.predict())
        images = [
            s.finish() for s in (first.with_seeds([4, 7]), StepwiseSampler(pipe, prompts, seeds=[4, 7], **options))
        ]
    assert torch.equal(*images)
    assert (first.index, first.seeds) == (1, [1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "one seed for each of 1 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps .* got 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps .* got 1001"),
        ({"guidance_scale": float("inf")}, "guidance_scale .* got inf"),
        ({"eta": 1.5}, "eta .* got 1.5"),
        ({"height": 0}, "height .* got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"expected {message}"):
        StepwiseSampler(None, ["a"], **{"seeds": [1], "num_inference_steps": 1, "guidance_scale": 1.0} | options)


def test_unsupported_pipelines_are_refused(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sd1")
    options: dict[str, Any] = {"seeds": [1], "num_inference_steps": 1, "guidance_scale": 1.0}
    with pytest.raises(SettingError, match="multiples of 2, got 17 and 16"):
        StepwiseSampler(pipe, ["a"], height=17, **options)
    pipe.scheduler = diffusers.LCMScheduler()
    with pytest.raises(DataError, match=r"got LCMScheduler; set pipe\.scheduler"):
        StepwiseSampler(pipe, ["a"], **options)


@pytest.mark.parametrize(
    ("name", "changes", "steps"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, 1000),
        ("DDPMScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 1000),
        ("PNDMScheduler", {"steps_offset": 1}, 1000),
        ("PNDMScheduler", {}, 2),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 1000),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}, 1000),  # NaN, no error
        ("UniPCMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 1000),
    ],
)
def test_steps_that_the_scheduler_cannot_take_are_refused_in_one_line(
    make_pipe: Callable[..., Any], name: str, changes: dict[str, Any], steps: int
) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = getattr(diffusers, name)(**changes)
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0}
    for call in (
        lambda: StepwiseSampler(pipe, ["a"], seeds=[0], **options),
        lambda: generate(pipe, ["a"], progress=False, **options),
    ):
        with pytest.raises(SettingError, match=f"number of steps that {name} can take, got {steps} ") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_check_of_steps_draws_nothing_from_the_global_generator(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe("sd1")
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    state = torch.get_rng_state()
    check_steps(pipe.scheduler, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_models_own_guidance_is_the_default(make_pipe: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"seeds": [0], "num_inference_steps": 1}
    assert StepwiseSampler(make_pipe("sd1"), ["a"], **options).guidance_scale == 7.5
    assert StepwiseSampler(zoo.load(), ["a red circle"], **options).guidance_scale == 4.0
