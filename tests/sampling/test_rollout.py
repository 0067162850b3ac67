"""Roll-outs: DDIM by hand, for any scheduler."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from maskunet.sampling import StepwiseSampler
from maskunet.sampling.rollout import roll_out, rollout_steps

OPTIONS: dict[str, Any] = {"guidance_scale": 4.0}


def test_rollout_steps_are_spread_over_the_remaining_steps() -> None:
    assert rollout_steps(5, 15, 0) == []
    assert rollout_steps(5, 15, 1) == [10]
    assert rollout_steps(5, 15, 3) == [7, 10, 13]
    assert rollout_steps(12, 15, 3) == [13, 14]
    assert rollout_steps(14, 15, 3) == []
    assert rollout_steps(0, 4, 9) == [1, 2, 3]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_roll_out_over_all_steps_is_ddim(pipe: Any, scheduler: str, prediction: str) -> None:
    plain = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(plain.config)
    sampler = StepwiseSampler(pipe, ["a b", "c d"], seeds=[1, 2], num_inference_steps=5, **OPTIONS)
    with torch.no_grad():
        sampler.advance(sampler.predict())
        latents = sampler.latents.clone()
        output = sampler.predict()
        assert torch.equal(roll_out(sampler, output, 0), sampler.pred_x0(output))
        end = roll_out(sampler, output, 9)
        alone = roll_out(sampler, output[1:], 9, samples=[1])
        assert sampler.index == 1
        assert torch.equal(sampler.latents, latents)
        while sampler.index < 4:
            sampler.advance(sampler.predict())
        expected = sampler.pred_x0(sampler.predict())
    torch.testing.assert_close(alone, end[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(end, expected, atol=1e-3, rtol=1e-3)


def test_the_gradient_of_a_roll_out_is_its_slope(pipe: Any) -> None:
    sampler = StepwiseSampler(pipe, ["a b"], seeds=[1], num_inference_steps=3, **OPTIONS)
    with torch.no_grad():
        output = sampler.predict()
    leaf = output.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(roll_out(sampler, leaf, 2).sum(), leaf)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        up, down = (float(roll_out(sampler, output + e * direction, 2).double().sum()) for e in (1e-3, -1e-3))
    assert (up - down) / 2e-3 == pytest.approx(float((gradient * direction).sum()), rel=0.05)
