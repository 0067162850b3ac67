"""The diffusion loss in terms of tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.deprecated import KarrasVeScheduler
from diffusers.training_utils import compute_snr

from maskunet.diffusion import NoiseSchedule, diffusion_errors, prediction_target, snr_weights
from maskunet.errors import DataError

T = torch.tensor([0, 400, 999])


def made(kind: str) -> DDIMScheduler:
    return DDIMScheduler(prediction_type=kind, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def test_targets() -> None:
    x, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    assert prediction_target(made("epsilon"), x, noise, T) is noise
    scheduler = made("v_prediction")
    alpha = scheduler.alphas_cumprod[T][:, None, None, None]
    torch.testing.assert_close(
        prediction_target(scheduler, x, noise, T), alpha.sqrt() * noise - (1 - alpha).sqrt() * x
    )
    assert prediction_target(made("sample"), x, noise, T) is x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LCMScheduler", {}),
        ("TCDScheduler", {}),
        ("PNDMScheduler", {"trained_betas": list(torch.linspace(0.001, 0.01, 1000))}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "prediction_type": "sample"}),
        ("HeunDiscreteScheduler", {}),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"num_train_timesteps": 500}),
    ],
)
def test_the_schedule_is_the_schedulers_own(name: str, options: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**options)
    schedule = NoiseSchedule(scheduler)
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.float())
    assert schedule.prediction_type == options.get("prediction_type", "epsilon")
    assert schedule.num_timesteps == options.get("num_train_timesteps", 1000)


def test_the_schedule_is_a_snapshot_of_what_the_user_set() -> None:
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = torch.linspace(0.99, 0.01, 1000)
    scheduler.register_to_config(prediction_type="v_prediction")
    schedule = NoiseSchedule(scheduler)
    scheduler.alphas_cumprod.zero_()
    assert schedule.prediction_type == "v_prediction"
    assert torch.equal(schedule.alphas_cumprod, torch.linspace(0.99, 0.01, 1000))


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler has none"),
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler has none"),
        (diffusers.EDMDPMSolverMultistepScheduler(), "EDMDPMSolverMultistepScheduler has none"),
        (KarrasVeScheduler(), "KarrasVeScheduler has none"),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "has none"),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"), "has none"),
        (DDPMScheduler(prediction_type="other"), "DDPMScheduler has 'other'"),
        (
            diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            "EulerDiscreteScheduler has timestep_type 'continuous'",
        ),
    ],
)
def test_a_scheduler_without_a_noise_schedule_is_refused_in_one_line(scheduler: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"expected a scheduler with .*{reason}; set pipe.scheduler to") as caught:
        NoiseSchedule(scheduler)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_is_added_in_float32_and_cast_after(kind: str, dtype: torch.dtype) -> None:
    """In bfloat16 alone, sigma is 0 at the first timesteps and off by some per cent up to t = 18."""
    steps, scheduler = torch.arange(32), made(kind)
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(32, 4, 8, 8, generator=generator), torch.randn(32, 4, 8, 8, generator=generator)
    alpha = scheduler.alphas_cumprod.double()[:32].view(-1, 1, 1, 1)
    expected = (alpha.sqrt() * x + (1 - alpha).sqrt() * noise).float()
    target = {"epsilon": noise, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x, "sample": x}[kind]
    seen: list[torch.Tensor] = []

    def unet(noisy: torch.Tensor, timesteps: torch.Tensor, embeds: object) -> SimpleNamespace:
        seen.append(noisy)
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    errors = diffusion_errors(unet, scheduler, x, torch.zeros(32, 1, 1, dtype=dtype), noise, steps)
    assert seen[0].dtype == dtype
    in_float32 = DDPMScheduler.from_config(scheduler.config).add_noise(x, noise, steps)
    torch.testing.assert_close(in_float32, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(seen[0], in_float32.to(dtype))
    torch.testing.assert_close(errors, target.square().mean((1, 2, 3)).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_scripts(kind: str) -> None:
    scheduler = DDPMScheduler.from_config(made(kind).config)
    snr = compute_snr(scheduler, T)
    expected = torch.stack([snr, 5.0 * torch.ones_like(T)], dim=1).min(dim=1)[0]
    expected = expected / (snr if kind == "epsilon" else snr + 1)
    torch.testing.assert_close(snr_weights(scheduler, T, 5.0), expected)


def test_min_snr_weights_of_sample_prediction() -> None:
    """The paper's weight is min(SNR, gamma) of the error in x_0."""
    expected = compute_snr(DDPMScheduler.from_config(made("sample").config), T).clamp(max=5.0)
    torch.testing.assert_close(snr_weights(made("sample"), T, 5.0), expected)


@pytest.mark.parametrize(("kind", "last"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_weights_are_finite_at_zero_snr(kind: str, last: float) -> None:
    scheduler = DDPMScheduler.from_config(made(kind).config, rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    assert snr_weights(scheduler, torch.tensor([999]), 5.0).tolist() == [last]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_perfect_prediction_has_no_error(kind: str) -> None:
    x, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    scheduler = made(kind)
    target = prediction_target(scheduler, x, noise, T)

    def unet(noisy: torch.Tensor, timesteps: torch.Tensor, embeds: object) -> SimpleNamespace:
        alpha = scheduler.alphas_cumprod[T][:, None, None, None]
        torch.testing.assert_close(noisy, alpha.sqrt() * x + (1 - alpha).sqrt() * noise)
        return SimpleNamespace(sample=target + torch.tensor([0.0, 1.0, 2.0])[:, None, None, None])

    errors = diffusion_errors(unet, scheduler, x, None, noise, T)  # type: ignore[arg-type]
    torch.testing.assert_close(errors, torch.tensor([0.0, 1.0, 4.0]))
