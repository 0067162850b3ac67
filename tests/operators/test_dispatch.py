"""Layers from factors and from bits against the reference: the same masks, the same outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskunet.errors import SettingError
from maskunet.operators import factored_linear, implementation, pack_bits, packed_linear, using
from maskunet.operators.tiled import LEAST_ROWS
from maskunet.relaxation import THRESHOLD, gumbel_noise

seeds = st.integers(0, 2**31)
tall = st.integers(LEAST_ROWS, 90)  # below, a product of few rows may sum in another order
sizes = st.integers(2, 40)
ranks = st.sampled_from([1, 2, 8, 17, 64, 80])


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def factors(seed: int, sets: int, outputs: int, inputs: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    left = normal(seed, sets, outputs, rank) / rank**0.5
    return left, normal(seed + 1, inputs, rank), normal(seed + 2, inputs)


def right_by_sample(made: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The same shapes with the right factor by sample and one left factor for all."""
    left, right, row = made
    scale = 1 + torch.arange(len(left))[:, None, None] / 4
    return left[0], (right * scale).mT.contiguous().mT, row


def eye_outputs(left: Tensor, right: Tensor, row: Tensor) -> Tensor:
    """Masks as outputs: ones for weights, the identity for inputs."""
    outputs, inputs = left.shape[-2], len(row)
    sets = len(left) if left.ndim == 3 else len(right) if right.ndim == 3 else 1
    x = torch.eye(inputs).expand(sets, -1, -1)
    return factored_linear(x, torch.ones(outputs, inputs), None, left, right, row)


@given(st.integers(1, 3), tall, sizes, ranks, st.booleans(), seeds)
def test_masks_are_the_references_exactly(
    sets: int, outputs: int, inputs: int, rank: int, right: bool, seed: int
) -> None:
    made = factors(seed, sets, outputs, inputs, rank)
    made = right_by_sample(made) if right else made
    with using("reference"):
        reference = eye_outputs(*made)
    with using("tiled"):
        tiled = eye_outputs(*made)
    assert torch.equal(tiled, reference)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(1280, 1280, 16), (640, 768, 480), (320, 1280, 9)])
def test_masks_of_layers_of_many_tiles_are_the_references_exactly(
    outputs: int, inputs: int, rank: int, right: bool
) -> None:
    made = factors(3, 1, outputs, inputs, rank)
    made = right_by_sample(made) if right else made
    with using("reference"):
        reference = eye_outputs(*made)
    with using("tiled"):
        assert torch.equal(eye_outputs(*made), reference)


@pytest.mark.parametrize("name", ["reference", "tiled"])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layers_without_a_gradient_are_the_formula_and_leave_what_is_given(
    name: str, noisy: bool, dtype: torch.dtype
) -> None:
    made, rows, outputs, inputs = factors(7, 2, 48, 24, 8), 4, 48, 24
    weight, bias, x = (normal(8, outputs, inputs), normal(9, outputs), normal(10, rows, 3, inputs))
    weight, bias, x = weight.to(dtype), bias.to(dtype), x.to(dtype)
    noise = [gumbel_noise((outputs, inputs), r) for r in range(rows)]
    given = [t.clone() for t in (x, weight, bias, *made, *noise)]
    logits = (made[0] @ made[1].T + made[2]).repeat(2, 1, 1)
    masks = logits + torch.stack(noise) > 0 if noisy else logits >= THRESHOLD
    expected = torch.stack([x[r] @ (weight * masks[r]).T + bias for r in range(rows)])
    drawn = noise.__getitem__ if noisy else None
    with using(name):
        learned = factored_linear(x, weight, bias, made[0].clone().requires_grad_(), *made[1:], 1.0, drawn)
        found = factored_linear(x, weight, bias, *made, 1.0, drawn)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, expected, atol=4 * tolerance, rtol=tolerance)
    torch.testing.assert_close(learned, found, atol=4 * tolerance, rtol=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(given, (x, weight, bias, *made, *noise), strict=True))


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), sizes, st.sampled_from([1, 8, 30]), st.data(), seeds)
def test_outputs_and_gradients_are_the_references(
    sets: int, repeats: int, outputs: int, inputs: int, rank: int, data: st.DataObject, seed: int
) -> None:
    rows = sets * repeats
    lead = data.draw(st.sampled_from([(rows,), (rows, 3), (rows, 2, 2)]))
    bias = normal(seed + 4, outputs) if data.draw(st.booleans()) else None
    tau = data.draw(st.sampled_from([1.0, 0.5]))
    noisy, by_right = data.draw(st.booleans()), data.draw(st.booleans())
    drawn = [gumbel_noise((outputs, inputs), seed + r) for r in range(rows)]
    weight = normal(seed + 3, inputs, outputs).T if data.draw(st.booleans()) else normal(seed + 3, outputs, inputs)
    if data.draw(st.booleans()):  # inputs that are not contiguous
        x = (
            normal(seed + 5, *lead[:-1], inputs, lead[-1]).transpose(-1, -2)
            if len(lead) > 1
            else normal(seed + 5, inputs, rows).T
        )
    else:
        x = normal(seed + 5, *lead, inputs)
    grad = normal(seed + 6, *lead, outputs)
    results = {}
    for name in ("reference", "tiled"):
        # Few-row products sum in another order, so scores are drawn away from the threshold by exact fractions.
        made = factors(seed, sets, outputs, inputs, rank)
        left, right, row = (t.mul(8).round().div(8) for t in (right_by_sample(made) if by_right else made))
        leaves = [t.clone().requires_grad_() for t in (x, left, right, row)]
        with using(name):
            out = factored_linear(leaves[0], weight, bias, *leaves[1:], tau, drawn.__getitem__ if noisy else None)
        out.backward(grad)
        results[name] = [out.detach(), *(t.grad for t in leaves)]
    for ours, reference in zip(results["tiled"], results["reference"], strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5 * max(1.0, float(reference.abs().max())), rtol=1e-5)


halves = st.sampled_from([torch.bfloat16, torch.float16])


def rounding(found: Tensor, exact: Tensor) -> float:
    """Greatest difference as a share of the greatest number."""
    return float((found.float() - exact).abs().max() / exact.abs().max().clamp_min(1e-6))


@given(st.integers(1, 2), st.integers(1, 2), tall, sizes, ranks, halves, st.booleans(), st.booleans(), seeds)
def test_half_precision_is_the_reference_within_its_rounding(
    sets: int,
    repeats: int,
    outputs: int,
    inputs: int,
    rank: int,
    dtype: torch.dtype,
    noisy: bool,
    turned: bool,
    seed: int,
) -> None:
    rows = sets * repeats
    made = factors(seed, sets, outputs, inputs, rank)
    x = normal(seed + 3, rows, inputs, 5, dtype=dtype).mT if turned else normal(seed + 3, rows, 5, inputs, dtype=dtype)
    weight, bias = normal(seed + 4, outputs, inputs, dtype=dtype), normal(seed + 5, outputs, dtype=dtype)
    noise = [gumbel_noise((outputs, inputs), seed + r) for r in range(rows)].__getitem__ if noisy else None
    leaf, grad = x.detach().requires_grad_(), normal(seed + 6, rows, 5, outputs, dtype=dtype)
    with using("tiled"):
        tiled = factored_linear(leaf, weight, bias, *made, 1.0, noise)
    tiled.backward(grad)
    exact_leaf = x.detach().float().requires_grad_()
    with using("reference"):
        exact = factored_linear(exact_leaf, weight.float(), bias.float(), *made, 1.0, noise)
    exact.backward(grad.float())
    assert tiled.dtype == dtype
    assert rounding(tiled.detach(), exact.detach()) < 2e-2
    assert leaf.grad is not None
    assert exact_leaf.grad is not None
    assert rounding(leaf.grad, exact_leaf.grad) < 2e-2


@given(st.integers(1, 3), st.integers(1, 2), tall, st.integers(1, 6), halves, st.booleans(), seeds)
def test_packed_layers_in_half_precision_and_of_inputs_that_are_not_contiguous(
    sets: int, repeats: int, outputs: int, eighths: int, dtype: torch.dtype, half: bool, seed: int
) -> None:
    inputs, rows = 8 * eighths, sets * repeats
    kind = dtype if half else torch.float32
    mask = normal(seed, sets, outputs, inputs) > 0
    x = normal(seed + 1, rows, inputs, 3, dtype=kind).mT
    weight, bias = normal(seed + 2, inputs, outputs, dtype=kind).T, normal(seed + 3, outputs, dtype=kind)
    exact = torch.stack([x[r].float() @ (weight.float() * mask[r % sets]).T + bias.float() for r in range(rows)])
    for name in ("reference", "tiled"):
        with using(name):
            found = packed_linear(x, weight, bias, pack_bits(mask), sets)
        assert found.dtype == kind
        assert rounding(found, exact) < (2e-2 if half else 1e-5)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("name", ["reference", "tiled"])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_masks_do_not_depend_on_the_precision_that_is_asked_for(name: str, kind: str, right: bool) -> None:
    """Under autocast, and where the factors themselves were cast: they are those of the same factors in float32."""
    made = factors(0, 2, 64, 64, 16)
    made = right_by_sample(made) if right else made
    if kind == "bfloat16":
        made = tuple(t.bfloat16() for t in made)  # type: ignore[assignment]
    with using("reference"):
        exact = eye_outputs(*(t.float() for t in made))
    with using(name), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        assert torch.equal(eye_outputs(*made).float(), exact)


@pytest.mark.parametrize("name", ["reference", "tiled"])
def test_autocast_computes_the_product_in_its_precision_and_masks_in_theirs(name: str) -> None:
    made = factors(0, 2, 48, 40, 8)
    x, weight = normal(1, 2, 5, 40), normal(2, 48, 40)
    left = made[0].clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), using(name):
        out = factored_linear(x, weight, None, left, *made[1:])
    exact = factored_linear(x, weight, None, *made)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() < 2e-2 * exact.abs().max()
    out.sum().backward()
    assert left.grad is not None
    assert left.grad.dtype == torch.float32
    assert left.grad.abs().sum() > 0


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 12), st.integers(1, 12), st.booleans(), seeds)
def test_packed_layers_are_the_reference(
    sets: int, repeats: int, outputs: int, eighths: int, wide: bool, seed: int
) -> None:
    inputs = 8 * eighths
    mask = normal(seed, sets, outputs, inputs) > 0
    x = normal(seed + 1, sets * repeats, *([3] if wide else []), inputs)
    weight, bias = normal(seed + 2, outputs, inputs), normal(seed + 3, outputs)
    made = {}
    for name in ("reference", "tiled"):
        leaf = x.clone().requires_grad_()
        with using(name):
            out = packed_linear(leaf, weight, bias, pack_bits(mask), sets)
        out.sum().backward()
        made[name] = (out.detach(), leaf.grad)
    for ours, reference in zip(made["tiled"], made["reference"], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    rows = [x[r] @ (weight * mask[r % sets]).T + bias for r in range(len(x))]
    torch.testing.assert_close(made["tiled"][0], torch.stack(rows), atol=1e-4, rtol=1e-5)


def test_layers_whose_bits_end_inside_a_byte_take_the_reference() -> None:
    mask = normal(0, 2, 3, 5) > 0
    x, weight = normal(1, 4, 5), normal(2, 3, 5)
    with using("tiled"):
        out = packed_linear(x, weight, None, pack_bits(mask), 2)
    torch.testing.assert_close(out, torch.stack([x[r] @ (weight * mask[r % 2]).T for r in range(4)]))


def test_a_base_that_trains_takes_the_reference() -> None:
    weight = normal(0, 20, 6).requires_grad_()
    with using("tiled"):
        factored_linear(normal(1, 2, 6), weight, None, *factors(2, 2, 20, 6, 4)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_large_batches_are_tiled_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.zeros(2, 3), torch.empty(1 << 11, 1 << 10, device="meta")
    assert (
        implementation.choose_implementation(x, weight, implementation.BATCHED_WEIGHTS // weight.numel())
        == "reference"
    )
    assert (
        implementation.choose_implementation(x, weight, implementation.BATCHED_WEIGHTS // weight.numel() + 1)
        == "tiled"
    )
    small = torch.empty(implementation.TRAINED_WEIGHTS // 512, 512, device="meta")
    assert (
        implementation.choose_implementation(x, small, 2)
        == implementation.choose_implementation(x, small, 1, is_trained=True)
        == "reference"
    )
    assert implementation.choose_implementation(x, small, 2, is_trained=True) == "tiled"
    assert implementation.choose_implementation(x, small[1:], 2, is_trained=True) == "reference"
    monkeypatch.setenv(implementation.VARIABLE, "tiled")
    assert implementation.choose_implementation(x, weight, 1) == "tiled"
    with using("reference"):
        assert implementation.choose_implementation(x, weight, 1) == "reference"
    monkeypatch.setenv(implementation.VARIABLE, "fastest")
    with pytest.raises(
        SettingError, match=r"^expected MASKUNET_OPERATORS to be one of auto, reference, tiled, triton, got 'fastest'$"
    ):
        implementation.choose_implementation(x, weight, 1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_seeds_are_noise_of_their_rows(count: int) -> None:
    left, right, row = factors(0, 2, 20, 9, 3)
    x, weight = normal(1, 4, 9), normal(2, 20, 9)
    drawn = [gumbel_noise((20, 9), seed) for seed in range(count)]
    expected = factored_linear(x, weight, None, left, right, row, 1.0, lambda r: drawn[r % count])
    for name in ("reference", "tiled"):
        with using(name):
            out = factored_linear(x, weight, None, left, right, row, 1.0, tuple(range(count)))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_bad_input_is_refused() -> None:
    left, right, row = factors(0, 2, 4, 8, 3)
    x, weight = torch.zeros(4, 8), torch.zeros(4, 8)
    with pytest.raises(ValueError, match="expected factors"):
        factored_linear(x, weight, None, left, right[:, :2], row)
    with pytest.raises(ValueError, match="expected factors"):
        factored_linear(x, weight, None, left, right.expand(3, -1, -1), row)
    with pytest.raises(ValueError, match="expected a batch that is a multiple of the 2 masks given, got 3"):
        factored_linear(x[:3], weight, None, left[0], right.expand(2, -1, -1), row)
    with pytest.raises(ValueError, match="expected a batch that is a multiple of the 2 masks given, got 3"):
        factored_linear(x[:3], weight, None, left, right, row)
    with pytest.raises(ValueError, match="expected a batch that is a multiple of the 3 masks given, got 4"):
        packed_linear(x, weight, None, torch.zeros(12, dtype=torch.uint8), 3)
    for name in ("reference", "tiled"):
        with using(name), pytest.raises(ValueError, match="expected 8 bytes"):
            packed_linear(x, weight, None, torch.zeros(7, dtype=torch.uint8), 2)
    with (
        pytest.raises(
            SettingError,
            match=r"^expected the implementation to be one of auto, reference, tiled, triton, got 'fast'$",
        ),
        using("fast"),
    ):
        pass
    with using("triton"), pytest.raises(ValueError, match="expected Triton and a GPU"):
        factored_linear(x, weight, None, left, right, row)
