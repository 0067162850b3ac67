"""Properties of the relaxation from logits to binary masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskunet.relaxation import (
    THRESHOLD,
    density,
    derive_seed,
    gumbel_noise,
    gumbel_sigmoid,
    keep_probability,
    threshold,
)

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 2**31)
taus = st.sampled_from([0.05, 0.5, 1.0, 3.0])


def random_logits(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(shapes, seeds, taus, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_masks_are_binary_in_the_logits_dtype(
    shape: tuple[int, ...], seed: int, tau: float, dtype: torch.dtype
) -> None:
    logits = random_logits(shape, seed).to(dtype)
    noise = gumbel_noise(shape, seed, dtype=dtype)
    for mask in (threshold(logits, tau), gumbel_sigmoid(logits, noise, tau)):
        assert mask.shape == shape
        assert mask.dtype == dtype
        assert torch.equal(mask, mask.bool().to(dtype))


@given(shapes, seeds, taus)
def test_threshold_keeps_where_keeping_is_at_least_as_likely_as_not(
    shape: tuple[int, ...], seed: int, tau: float
) -> None:
    logits = random_logits(shape, seed, torch.float64)
    assert torch.equal(threshold(logits, tau).bool(), keep_probability(logits) >= 0.5)


def test_threshold_at_the_tie_and_beside_it() -> None:
    assert pytest.approx(math.log(math.log(2))) == THRESHOLD
    logits = torch.tensor([THRESHOLD - 1e-5, THRESHOLD, THRESHOLD + 1e-5], dtype=torch.float64)
    assert threshold(logits).tolist() == [0, 1, 1]
    assert keep_probability(logits)[1].item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0, 1e4])
def test_tau_leaves_masks_as_they_are(tau: float) -> None:
    logits = random_logits((1000,), 3)
    noise = gumbel_noise((1000,), 4)
    assert torch.equal(threshold(logits, tau), (logits >= THRESHOLD).float())
    assert torch.equal(gumbel_sigmoid(logits, noise, tau), (logits + noise > 0).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_masks_with_a_gradient_are_those_without_up_to_the_tie(dtype: torch.dtype, tau: float) -> None:
    tie = torch.tensor([THRESHOLD], dtype=dtype)
    beside = [torch.nextafter(tie, torch.full_like(tie, way)) for way in (-1.0, 1.0)]
    logits = torch.cat([tie, *beside, random_logits((1000,), 5).to(dtype)])
    noise = torch.cat([-logits[:3], gumbel_noise((1000,), 6, dtype=dtype)])  # the first three sums are 0
    learned = logits.clone().requires_grad_()
    assert torch.equal(threshold(learned, tau), threshold(logits, tau))
    assert torch.equal(gumbel_sigmoid(learned, noise, tau), gumbel_sigmoid(logits, noise, tau))
    assert not gumbel_sigmoid(logits, noise, tau)[:3].any()
    with torch.inference_mode():
        assert torch.equal(threshold(learned, tau), threshold(logits, tau))


@given(shapes, seeds)
def test_gumbel_masks_are_the_signs_of_the_noisy_logits(shape: tuple[int, ...], seed: int) -> None:
    logits, noise = random_logits(shape, seed, torch.float64), gumbel_noise(shape, seed + 1, dtype=torch.float64)
    assert torch.equal(gumbel_sigmoid(logits, noise).bool(), logits + noise > 0)


@given(shapes, seeds, taus)
def test_gradient_is_that_of_the_soft_value(shape: tuple[int, ...], seed: int, tau: float) -> None:
    logits = random_logits(shape, seed, torch.float64).requires_grad_()
    noise = gumbel_noise(shape, seed + 1, dtype=torch.float64)
    upstream = random_logits(shape, seed + 2, torch.float64)
    for shift, mask in ((noise, gumbel_sigmoid(logits, noise, tau)), (-THRESHOLD, threshold(logits, tau))):
        (ours,) = torch.autograd.grad(mask, logits, upstream)
        soft = torch.sigmoid((logits.detach() + shift) / tau)
        torch.testing.assert_close(ours, upstream * soft * (1 - soft) / tau, atol=1e-12, rtol=1e-10)


def test_gradient_sums_over_logits_shared_by_the_batch() -> None:
    logits = random_logits((3, 4), 0, torch.float64).requires_grad_()
    noise = gumbel_noise((5, 3, 4), 1, dtype=torch.float64)
    (ours,) = torch.autograd.grad(gumbel_sigmoid(logits, noise, 0.5).sum(), logits)
    soft = torch.sigmoid((logits.detach() + noise) / 0.5)
    torch.testing.assert_close(ours, (soft * (1 - soft) / 0.5).sum(0))


@pytest.mark.parametrize("logit", [-3.0, -1.0, THRESHOLD, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_frequency_of_kept_weights_is_the_keep_probability(logit: float, tau: float) -> None:
    count = 200_000
    logits = torch.full((count,), logit)
    kept = gumbel_sigmoid(logits, gumbel_noise((count,), derive_seed("frequency", logit, tau)), tau).double().mean()
    expected = 1 - math.exp(-math.exp(logit))
    assert abs(kept.item() - expected) < 4.5 * math.sqrt(expected * (1 - expected) / count)
    assert keep_probability(logits[:1]).item() == pytest.approx(expected, rel=1e-6)


def test_keep_probability_in_the_tails() -> None:
    probability = keep_probability(torch.tensor([-100.0, -20.0, 5.0, 100.0], dtype=torch.float64))
    assert probability.tolist() == pytest.approx([math.exp(-100), math.exp(-20), 1, 1], rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keep_probability_has_its_gradient_at_every_logit(dtype: torch.dtype) -> None:
    values = [
        -math.inf,
        -1e4,
        -200.0,
        -20.0,
        -3.0,
        THRESHOLD,
        0.0,
        1.0,
        2.0,
        5.0,
        9.0,
        11.5,
        12.0,
        88.8,
        1e4,
        math.inf,
    ]
    logits = torch.tensor(values, dtype=dtype, requires_grad=True)
    probability = keep_probability(logits)
    (gradient,) = torch.autograd.grad(probability.sum(), logits)
    assert probability.dtype == gradient.dtype == dtype
    rounded = logits.detach().double().tolist()
    exact = [-math.expm1(-math.exp(min(x, 700))) for x in rounded]
    slope = [math.exp(min(x, 700) - math.exp(min(x, 700))) for x in rounded]
    precision = torch.finfo(dtype)
    assert probability.double().tolist() == pytest.approx(exact, rel=4 * precision.eps, abs=precision.smallest_normal)
    assert gradient.double().tolist() == pytest.approx(slope, rel=4 * precision.eps, abs=4 * precision.eps)


def test_keep_probability_of_no_number_is_none() -> None:
    assert keep_probability(torch.tensor([math.nan, 0.0])).isnan().tolist() == [True, False]


def test_noise_has_the_moments_of_a_gumbel_variable() -> None:
    noise = gumbel_noise((200_000,), 7).double()
    deviation = math.pi / math.sqrt(6)
    assert abs(noise.mean().item() - 0.5772156649) < 4.5 * deviation / math.sqrt(len(noise))
    assert noise.std().item() == pytest.approx(deviation, rel=0.02)


@given(shapes, seeds)
def test_noise_repeats_with_its_seed(shape: tuple[int, ...], seed: int) -> None:
    assert torch.equal(gumbel_noise(shape, seed), gumbel_noise(shape, seed))
    assert not torch.equal(gumbel_noise((64, *shape), seed), gumbel_noise((64, *shape), seed + 1))


def test_a_generator_is_advanced_and_the_global_one_is_not() -> None:
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    first, second = gumbel_noise((16,), generator), gumbel_noise((16,), generator)
    assert torch.equal(first, gumbel_noise((16,), 5))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_seeds_are_stable_on_every_machine() -> None:
    assert derive_seed(0, "up_blocks.1.attentions.0", 981.0) == 3783101638413329683
    assert derive_seed() == 8238016292129134938


@given(st.lists(st.one_of(st.integers(), st.text(alphabet="ab.1", max_size=4)), max_size=4))
def test_derived_seeds_depend_on_every_part_and_its_place(parts: list[object]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)
    assert seed != derive_seed(*parts, "more")
    assert seed != derive_seed("more", *parts)
    gumbel_noise((1,), seed)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=r"expected a finite temperature tau > 0, got (0\.0|-1\.0|nan|inf)"):
        threshold(torch.zeros(2), tau)
    with pytest.raises(ValueError, match="expected a finite temperature tau > 0"):
        gumbel_sigmoid(torch.zeros(2), torch.zeros(2), tau)


@given(st.integers(1, 4), shapes, seeds, st.booleans())
def test_density_is_the_kept_fraction(batch: int, shape: tuple[int, ...], seed: int, boolean: bool) -> None:
    mask = random_logits((batch, *shape), seed) > 0
    mask = mask if boolean else mask.to(torch.float16)
    each = density(mask, per_sample=True)
    assert each.shape == (batch,)
    assert each.dtype == torch.float32
    size = math.prod(shape)
    assert each.tolist() == pytest.approx([int(m.bool().sum()) / size for m in mask], abs=1e-6)
    assert density(mask).item() == pytest.approx(each.mean().item(), abs=1e-6)
    assert density(mask).shape == ()
