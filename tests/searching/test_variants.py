"""What a search may do differently: structured logits, several draws, choice without gradient, short roll-outs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.errors import DataError
from maskunet.relaxation import derive_seed, gumbel_noise, gumbel_sigmoid
from maskunet.sampling import StepwiseSampler
from maskunet.sampling.rollout import rolled_out, stops
from maskunet.searching import SearchConfig, SearchResult
from maskunet.searching.logits import LogitOptimizer, parts
from maskunet.searching.searched_masks import SearchedMasks
from maskunet.targets import describe

SEED = 4
CONFIG = SearchConfig(num_inference_steps=3, iterations=(0, 2, 0), guidance_scale=4.0, learning_rate=0.5)
OPTIONS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0}


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


def changed(**changes: Any) -> SearchConfig:
    return SearchConfig(**{**vars(CONFIG), **changes})


def searched(pipe: Any, config: SearchConfig = CONFIG, prompts: Sequence[str] = ("a b", "c d")) -> SearchResult:
    seeds = range(SEED, SEED + len(prompts))
    return mu.search(pipe, list(prompts), redness, config, seeds=list(seeds), progress=False)


def rewards_at(found: SearchResult, step: int) -> list[list[float]]:
    return [h["reward"] for h in found.history if h["step"] == step]


def test_the_default_is_the_plain_ascent_bit_for_bit(pipe: Any) -> None:
    """Free logits, one draw an iterate, judged by the predicted picture: written out, for one sample."""
    found = searched(pipe, prompts=["a b"])
    network = describe(pipe.unet, "decoder-attention")
    sampler = StepwiseSampler(pipe, ["a b"], seeds=[SEED], **OPTIONS)
    with torch.no_grad():
        sampler.advance(sampler.predict())
        without = sampler.predict_half(conditional=False)
    live = SearchedMasks(network)
    mu.attach(pipe, live)
    logits = {x.name: torch.full((1, *x.shape), CONFIG.initial_logit, requires_grad=True) for x in network.layers}
    optimizer = torch.optim.AdamW(logits.values(), lr=0.5, weight_decay=0.0, fused=True)
    best: dict[str, Tensor] = {}
    highest, rewards = -float("inf"), []
    for k in range(3):
        noise = {
            n: gumbel_noise(tuple(s.shape[1:]), derive_seed(SEED, "search", 1, k, n))[None] for n, s in logits.items()
        }
        live.masks = {n: gumbel_sigmoid(s, noise[n]) for n, s in logits.items()}
        output = sampler.guide(without, sampler.predict_half(conditional=True))
        reward = redness(sampler.decode(sampler.pred_x0(output)), [])
        rewards.append(reward.tolist())
        if float(reward.detach()) > highest:
            highest, best = float(reward.detach()), {n: m.detach().bool() for n, m in live.masks.items()}
        gradients = torch.autograd.grad(-reward.sum(), list(logits.values()))
        for s, gradient in zip(logits.values(), gradients, strict=True):
            s.grad = gradient.contiguous()
        optimizer.step()
    mu.detach(pipe)
    assert rewards_at(found, 1) == rewards
    assert all(torch.equal(found.masks.get(1, name), mask) for name, mask in best.items())


@pytest.mark.parametrize(
    ("structure", "linear", "convolution"),
    [
        ("free", [(4, 6)], [(4, 6, 3, 3)]),
        ("row", [(4, 1)], [(4, 1, 1, 1)]),
        ("column", [(1, 6)], [(1, 6, 1, 1)]),
        ("rows-and-columns", [(4, 1), (1, 6)], [(4, 1, 1, 1), (1, 6, 1, 1)]),
        ("layer", [(1, 1)], [(1, 1, 1, 1)]),
    ],
)
def test_structures(pipe: Any, structure: str, linear: list[Any], convolution: list[Any]) -> None:
    assert parts((4, 6), structure) == linear
    assert parts((4, 6, 3, 3), structure) == convolution
    config = changed(structure=structure, targets="decoder-attention-conv", initial_logit=1.0)
    found = searched(pipe, config)
    # At the start every weight has the same logit and noise of its own, whatever the structure.
    assert rewards_at(found, 1)[0] == rewards_at(searched(pipe, changed(**vars(config) | {"structure": "free"})), 1)[0]
    assert rewards_at(found, 1)[1] != rewards_at(found, 1)[0]


def test_a_gradient_of_a_row_is_the_sum_over_it(pipe: Any) -> None:
    network = describe(pipe.unet, "decoder-attention")

    def logits(structure: str) -> tuple[dict[str, list[Tensor]], LogitOptimizer]:
        config = changed(structure=structure, gumbel=False, initial_logit=0.3)
        ascent = LogitOptimizer(network, [1, 2], config, device=torch.device("cpu"), scale_gradients=False, reward_name="mine")
        ascent.restart()
        masks = ascent.draw(0, 0, [0, 1])
        assert all(masks[x.name].shape == (2, *x.shape) for x in network.layers)
        ascent.differentiate(torch.stack([m.flatten(1)[:, 0] for m in masks.values()]).sum(0), [0, 1])
        return ascent.logits, ascent

    _, free = logits("free")
    _, rows = logits("row")
    for whole, part in zip(free._grads, rows._grads, strict=True):
        assert whole is not None
        assert part is not None
        torch.testing.assert_close(part, whole.sum(2, keepdim=True))
    before, both = logits("rows-and-columns")
    name = network.layers[0].name
    assert [float(x.detach().flatten()[0]) for x in before[name]] == pytest.approx([0.3, 0.0])
    both.improve([0, 1])
    row, column = (x.detach() for x in both.logits[name])
    assert bool((row[:, 0] != 0.3).all())
    assert bool((row[:, 1:] == 0.3).all())  # only the first row and column have a gradient
    assert bool((column[..., 0] != 0).all())
    assert bool((column[..., 1:] == 0).all())


def test_spread_starts_are_a_samples_own(pipe: Any) -> None:
    network = describe(pipe.unet, "decoder-attention")

    def start(seeds: list[int], index: int) -> Tensor:
        config = changed(initial_spread=0.5, structure="row")
        ascent = LogitOptimizer(network, seeds, config, device=torch.device("cpu"), scale_gradients=False, reward_name="mine")
        ascent.restart(index)
        return torch.cat([x[0].detach().flatten(1) for x in ascent.logits.values()], 1)

    both = start([1, 2], 3)
    assert torch.equal(both[1:], start([2], 3))
    assert not torch.equal(both, start([1, 2], 4))
    assert float(both.mean()) == pytest.approx(CONFIG.initial_logit, abs=0.15)
    assert float(both.std()) == pytest.approx(0.5, abs=0.15)


def test_several_draws_average_gradients_and_keep_the_best(pipe: Any) -> None:
    found = searched(pipe, changed(draws=3, iterations=(0, 1, 0), initial_logit=1.0))
    seen = torch.tensor(rewards_at(found, 1))
    assert seen.shape == (6, 2)
    assert bool((seen[0] != seen[1]).all())
    # The first draw of each iterate is that of one draw; the first step of the ascent differs.
    one = torch.tensor(rewards_at(searched(pipe, changed(iterations=(0, 1, 0), initial_logit=1.0)), 1))
    assert torch.equal(seen[0], one[0])
    assert not torch.equal(seen[3], one[1])
    kept = found.masks.density()[1]
    drawn = torch.tensor([h["density"] for h in found.history if h["step"] == 1])
    torch.testing.assert_close(kept, drawn.gather(0, seen.argmax(0)[None])[0])

    network = describe(pipe.unet, "decoder-attention")
    config = changed(draws=2)
    ascent = LogitOptimizer(network, [1], config, device=torch.device("cpu"), scale_gradients=False, reward_name="mine")
    ascent.restart()
    for number, factor in enumerate((1.0, 3.0)):
        masks = ascent.draw(0, 0, [0], number)
        ascent.differentiate(torch.stack([m.sum() for m in masks.values()]).sum()[None] * factor, [0])
    mean = ascent._grads[0]
    assert mean is not None
    noise = [
        gumbel_noise(network.layers[0].shape, derive_seed(1, "search", 0, 0, network.layers[0].name, *n))
        for n in ((), (1,))
    ]
    slopes = [torch.sigmoid(CONFIG.initial_logit + n) for n in noise]
    expected = sum(-f * s * (1 - s) for f, s in zip((1.0, 3.0), slopes, strict=True)) / 2
    torch.testing.assert_close(mean[0], expected)


def test_choice_takes_no_gradient(pipe: Any) -> None:
    graded = []

    def seen(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        graded.append(pictures.requires_grad)
        return redness(pictures, prompts)

    config = changed(ascend=False, iterations=(0, 3, 0), initial_logit=0.0)
    found = mu.search(pipe, ["a b"], seen, config, seeds=[SEED], progress=False)
    assert not any(graded)
    rewards = rewards_at(found, 1)
    assert len({r[0] for r in rewards}) == 4
    best = max(range(4), key=lambda k: rewards[k][0])
    densities = [h["density"][0] for h in found.history if h["step"] == 1]
    assert float(found.masks.density()[1, 0]) == pytest.approx(densities[best])
    assert max(densities) - min(densities) < 0.2  # drawn from the start each time


def test_stops() -> None:
    assert stops(5, 15, 0) == []
    assert stops(5, 15, 1) == [10]
    assert stops(5, 15, 3) == [7, 10, 13]
    assert stops(12, 15, 3) == [13, 14]
    assert stops(14, 15, 3) == []
    assert stops(0, 4, 9) == [1, 2, 3]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_roll_out_over_all_steps_is_ddim(pipe: Any, scheduler: str, prediction: str) -> None:
    plain = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(plain.config)
    options = OPTIONS | {"num_inference_steps": 5}
    sampler = StepwiseSampler(pipe, ["a b", "c d"], seeds=[1, 2], **options)
    with torch.no_grad():
        sampler.advance(sampler.predict())
        before = sampler.latents.clone()
        output = sampler.predict()
        assert torch.equal(rolled_out(sampler, output, 0), sampler.pred_x0(output))
        end = rolled_out(sampler, output, 9)
        alone = rolled_out(sampler, output[1:], 9, samples=[1])
        assert sampler.index == 1
        assert torch.equal(sampler.latents, before)
        while sampler.index < 4:
            sampler.advance(sampler.predict())
        last = sampler.pred_x0(sampler.predict())
    torch.testing.assert_close(alone, end[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(end, last, atol=1e-3, rtol=1e-3)


def test_gradients_of_a_roll_out(pipe: Any) -> None:
    sampler = StepwiseSampler(pipe, ["a b"], seeds=[1], **OPTIONS)
    with torch.no_grad():
        output = sampler.predict()
    found = {}
    for kind in ("full", "straight"):
        leaf = output.clone().requires_grad_(True)
        end = rolled_out(sampler, leaf, 2, gradient=kind)
        (gradient,) = torch.autograd.grad(end.sum(), leaf)
        found[kind] = (end.detach(), gradient)
    torch.testing.assert_close(found["full"][0], found["straight"][0], atol=1e-5, rtol=1e-5)
    alpha, sigma = sampler.scales()
    torch.testing.assert_close(found["straight"][1], torch.full_like(output, -sigma / alpha))
    # The full one is the slope of what comes out.
    way = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        up, down = (float(rolled_out(sampler, output + e * way, 2).double().sum()) for e in (1e-3, -1e-3))
    assert (up - down) / 2e-3 == pytest.approx(float((found["full"][1] * way).sum()), rel=0.05)


@pytest.mark.parametrize("changes", [{}, {"halves": "both"}, {"rollout_gradient": "straight"}, {"ascend": False}])
def test_masks_are_judged_at_the_end_of_a_roll_out(pipe: Any, changes: dict[str, Any]) -> None:
    config = changed(rollout=1, initial_logit=1.0, **changes)
    found = searched(pipe, config)
    again = searched(pipe, changed(**vars(config) | {"reuse": False}))
    assert torch.equal(found.tensor, again.tensor)
    assert rewards_at(found, 1) == rewards_at(again, 1)
    # With one step left the roll-out is the sampling itself.
    assert max(r[0] for r in rewards_at(found, 1)) == pytest.approx(float(found.rewards[0]), abs=2e-3)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(DataError, match="gumbel=True"):
        changed(ascend=False, gumbel=False).checked()
    with pytest.raises(DataError, match="'row'"):
        changed(structure="diagonal").checked()
    with pytest.raises(DataError, match="'straight'"):
        changed(rollout_gradient="none").checked()
    for name, value in (("draws", 0), ("rollout", -1), ("initial_spread", -0.1)):
        with pytest.raises(DataError, match=name):
            changed(**{name: value}).checked()
