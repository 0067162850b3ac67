"""The state of a pipeline during and after a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.rewards import FunctionReward, Reward
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching import SearchConfig
from maskunet.searching.pipeline_state import needs_gradient_scaling


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


class NetworkReward(Reward):
    """A reward with networks in bfloat16 and in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.models = [nn.Linear(2, 2, dtype=torch.bfloat16)]
        self.heads = [nn.Linear(2, 2, dtype=dtype)]

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return redness(images, prompts)


def test_gradients_are_scaled_if_any_network_is_in_float16(pipe: Any) -> None:
    sampler = StepwiseSampler(pipe, ["a b"], seeds=[4], num_inference_steps=1, guidance_scale=1.0)
    decoder = nn.Linear(2, 2, dtype=torch.float16)
    decoder.dtype = torch.float16  # type: ignore[assignment]
    assert not needs_gradient_scaling(sampler, None, FunctionReward(redness))
    assert not needs_gradient_scaling(sampler, None, NetworkReward(torch.float32))
    assert needs_gradient_scaling(sampler, None, NetworkReward(torch.float16))
    assert needs_gradient_scaling(sampler, decoder, FunctionReward(redness))


@pytest.mark.parametrize("call", [1, 5])
def test_the_pipeline_is_restored_after_a_failure(pipe: Any, call: int) -> None:
    weights = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    forwards = [m.__dict__.get("forward") for m in pipe.unet.modules()]
    scheduler, flags = dict(vars(pipe.scheduler)), [p.requires_grad for p in pipe.unet.parameters()]
    calls = 0

    def fail(images: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return redness(images, prompts)

    config = SearchConfig.preset(
        "masks", num_inference_steps=3, iterations=3, guidance_scale=4.0, gradient_checkpointing=True
    )
    with pytest.raises(KeyboardInterrupt):
        mu.search(pipe, ["a b", "c d"], fail, config, progress=False)
    assert attachment_of(pipe) is None
    assert not pipe.unet.is_gradient_checkpointing
    assert [m.__dict__.get("forward") for m in pipe.unet.modules()] == forwards
    assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    assert all(vars(pipe.scheduler)[k] is v for k, v in scheduler.items())
    assert [p.requires_grad for p in pipe.unet.parameters()] == flags
