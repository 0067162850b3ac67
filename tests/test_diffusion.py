"""The diffusion loss in terms of tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from maskunet.diffusion import diffusion_errors, prediction_target, snr_weights
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
    with pytest.raises(DataError, match="'sample'"):
        prediction_target(made("sample"), x, noise, T)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_scripts(kind: str) -> None:
    scheduler = DDPMScheduler.from_config(made(kind).config)
    snr = compute_snr(scheduler, T)
    expected = torch.stack([snr, 5.0 * torch.ones_like(T)], dim=1).min(dim=1)[0]
    expected = expected / (snr if kind == "epsilon" else snr + 1)
    torch.testing.assert_close(snr_weights(scheduler, T, 5.0), expected)


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
