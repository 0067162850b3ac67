"""The diffusion loss in terms of tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

import maskunet as mu
from maskunet.diffusion import diffusion_errors, prediction_target, snr_weights

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
    with pytest.raises(mu.DataError, match="'sample'"):
        prediction_target(made("sample"), x, noise, T)


def test_min_snr_weights() -> None:
    alpha = made("epsilon").alphas_cumprod[T].float()
    snr = alpha / (1 - alpha)
    torch.testing.assert_close(snr_weights(made("epsilon"), T, 5.0), snr.clamp(max=5) / snr)
    torch.testing.assert_close(snr_weights(made("v_prediction"), T, 5.0), snr.clamp(max=5) / (snr + 1))


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
