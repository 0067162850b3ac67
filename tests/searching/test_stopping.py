"""Samples that are done with a step: each as if it were alone, and the rest of the batch as if they were not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import maskunet as mu
from maskunet.errors import RewardError
from maskunet.maskers import RandomMasks
from maskunet.rewards import Reward
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching import SearchConfig, SearchResult
from maskunet.searching.logits import LogitOptimizer
from maskunet.searching.search_loop import _Search
from maskunet.targets import describe

PROMPTS, SEEDS = ["a b", "c d", "e f"], [4, 7, 9]
CONFIG: dict[str, Any] = {
    "num_inference_steps": 3,
    "iterations": 4,
    "guidance_scale": 4.0,
    "learning_rate": 0.5,
    "initial_logit": 1.0,
}


class Redness(Reward):
    """Another offset for each prompt, so that a target is reached at once, later or never."""

    name = "redness"
    offsets: ClassVar[dict[str, float]] = {"a b": 0.0, "c d": 10.0, "e f": -10.0}

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        self.sizes.append(len(pictures))
        given = pictures.new_tensor([self.offsets[p] for p in prompts])
        return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2)) + given


def search(pipe: Any, chosen: Sequence[int], **changes: Any) -> tuple[SearchResult, list[int]]:
    reward = Redness()
    config = SearchConfig(**{**CONFIG, **changes})
    prompts, seeds = [PROMPTS[i] for i in chosen], [SEEDS[i] for i in chosen]
    return mu.search(pipe, prompts, reward, config, seeds=seeds, progress=False), reward.sizes


def target_of(pipe: Any) -> float:
    """A reward that the first sample reaches on the way, the second at once and the third never."""
    (found, _) = search(pipe, [0])
    rewards = [h["reward"][0] for h in found.history if h["step"] == 0]
    assert max(rewards) > rewards[0]
    return (rewards[0] + max(rewards)) / 2


@pytest.mark.parametrize(
    ("changes", "lies_under"),
    [
        ({"halves": "conditional"}, False),
        ({"halves": "both", "reuse": False, "keep": "last"}, False),
        ({"patience": 1, "keep": "last", "max_grad_norm": 0.1, "carry_over": True}, False),
        ({"patience": 1, "carry_over": True}, True),
    ],
)
def test_a_sample_that_is_done_is_as_if_alone(pipe: Any, changes: dict[str, Any], lies_under: bool) -> None:
    if lies_under:
        mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.9, seed=1))
    given = {"target_reward": target_of(pipe)} | changes
    together, sizes = search(pipe, [0, 1, 2], **given)
    numbers = []
    for i in range(3):
        alone, _ = search(pipe, [i], **given)
        mine, theirs = alone.masks, together.masks.select(i)
        names = [layer.name for layer in mine.network.layers]
        same = [(mine.get(t, n) == theirs.get(t, n)).float().mean() for t in range(3) for n in names]
        assert float(torch.stack(same).mean()) > 0.999
        torch.testing.assert_close(alone.tensor[0], together.tensor[i], atol=1e-3, rtol=1e-3)
        expected = [h["reward"] for h in alone.summary(0)["history"]]
        assert [h["reward"] for h in together.summary(i)["history"]] == pytest.approx(expected, abs=1e-3)
        numbers.append(len(expected))
    assert numbers[1] == 3  # once a step: its target is reached at once
    assert numbers[1] < numbers[0] <= numbers[2]
    # What is done leaves the batch, but where a masker lies under it; the first call and the last are of whole pictures.
    assert set(sizes[1:-1]) == {3} if lies_under else min(sizes[1:-1]) < 3


def test_a_step_ends_when_all_are_done(pipe: Any) -> None:
    _, sizes = search(pipe, [0, 1], target_reward=-5.0)
    assert sizes == [2] * 5
    _, sizes = search(pipe, [1, 2], target_reward=-5.0)
    assert sizes == [2] + [2, 1, 1, 1, 1] * 3 + [2]  # first and last: pictures of the seeds, finished ones


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_reuse_changes_no_bit_where_a_batch_shrinks(pipe: Any, halves: str) -> None:
    given = {"target_reward": target_of(pipe), "halves": halves}
    found, sizes = search(pipe, [0, 1, 2], **given)
    other, _ = search(pipe, [0, 1, 2], **given, reuse=False)
    assert len(set(sizes)) > 1
    first, second = found.masks.tensors(), other.masks.tensors()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(found.tensor, other.tensor)


@pytest.mark.parametrize("style", ["sd1", "sdxl"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_sampler_computes_some_samples(make_pipe: Any, style: str, guidance: float) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": guidance}
    sampler = StepwiseSampler(make_pipe(style), PROMPTS, seeds=SEEDS, **options)
    with torch.no_grad():
        output, some = sampler.predict(), sampler.predict([0, 2])
        torch.testing.assert_close(some, output[[0, 2]], atol=1e-5, rtol=1e-4)
        clean = sampler.pred_x0(output)
        torch.testing.assert_close(sampler.pred_x0(some, [0, 2]), clean[[0, 2]], atol=1e-4, rtol=1e-4)
        if guidance > 1:
            half = sampler.predict_half(conditional=True)
            assert torch.allclose(sampler.predict_half(conditional=True, samples=[1]), half[[1]], atol=1e-5)


class Network(Redness):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.models = [nn.Linear(2, 2, dtype=torch.bfloat16)]
        self.heads = [nn.Linear(2, 2, dtype=dtype)]


def test_gradients_are_scaled_where_any_network_is_in_float16(pipe: Any) -> None:
    sampler = StepwiseSampler(pipe, PROMPTS[:1], seeds=SEEDS[:1], num_inference_steps=1, guidance_scale=1.0)

    def scale(reward: Reward, decoder: Any = None) -> float:
        return _Search(
            pipe, describe(pipe.unet, "decoder-attention"), sampler, reward, SearchConfig(), decoder
        ).ascent._scales[0]

    half = nn.Linear(2, 2, dtype=torch.float16)
    half.dtype = torch.float16  # type: ignore[assignment]
    assert scale(Redness()) == scale(Network(torch.float32)) == 1
    assert scale(Network(torch.float16)) == scale(Redness(), half) == 1024


def test_an_overflow_lowers_the_scale_of_its_sample_alone(pipe: Any) -> None:
    network = describe(pipe.unet, "decoder-attention")
    config = SearchConfig(gumbel=False)
    device = torch.device("cpu")
    ascent = LogitOptimizer(network, SEEDS[:2], config, device=device, scale_gradients=True, reward_name="mine")
    ascent.restart()
    masks = ascent.draw(0, 0, [0, 1])
    name = next(iter(masks))
    rewards = torch.stack([masks[name][0].sum() * 1e38, masks[name][1].sum()])
    ascent.differentiate(rewards, [0, 1])
    ascent.improve([0, 1])
    assert ascent._scales == [64.0, 1024.0]
    assert bool((ascent.logits[name][0][0] == 2).all())
    assert float(ascent.logits[name][0][1].detach().max()) > 2
    ascent = LogitOptimizer(network, SEEDS[:1], config, device=device, scale_gradients=False, reward_name="mine")
    ascent.restart()
    ascent.differentiate(ascent.draw(0, 0, [0])[name].sum((1, 2)) * float("inf"), [0])
    with pytest.raises(RewardError, match="'mine'"):
        ascent.improve([0])
