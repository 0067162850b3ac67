"""Cases that `test_triton_kernels` runs in a separate process: the kernels against plain PyTorch.

They run on a GPU if there is one, else in Triton's interpreter, which must be chosen before Triton is imported.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskunet.operators import masked_linear, pack_bits, triton_launch
from maskunet.operators.triton_launch import triton_gumbel_noise
from maskunet.operators.triton_linear import triton_factored_linear, triton_packed_linear
from maskunet.relaxation import THRESHOLD, gumbel_sigmoid, keep_probability, threshold

settings.register_profile("kernels", deadline=None, max_examples=8, derandomize=True)
settings.load_profile("kernels")
torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRADIENTS = ("x", "left", "right", "row")
seeds = st.integers(0, 2**31)
wide = st.integers(1, 36)  # across two borders of the interpreter's tiles
tokens = st.integers(1, 18)
ranks = st.sampled_from([1, 4, 16, 37])
sets = st.sampled_from([1, 2, 4])  # of a batch of 4


class Case:
    """Seeded arguments of a layer; `dyadic` ones are small multiples of 1/8, whose sums of products are exact."""

    def __init__(self, seed: int, *, dyadic: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.generator, self.dyadic, self.dtype = torch.Generator().manual_seed(seed), dyadic, dtype

    def numbers(self, *shape: int) -> Tensor:
        if self.dyadic:
            return (torch.randint(-16, 17, shape, generator=self.generator) / 8).to(DEVICE)
        return torch.randn(shape, generator=self.generator).to(DEVICE)

    def layer(
        self, batch: int, count: int, outputs: int, inputs: int, *, rank: int, masks: int, biased: bool = True
    ) -> dict[str, Any]:
        return {
            "x": self.numbers(batch, count, inputs).to(self.dtype),
            "weight": self.numbers(outputs, inputs).to(self.dtype),
            "bias": self.numbers(outputs).to(self.dtype) if biased else None,
            "left": self.numbers(masks, outputs, rank) / (1 if self.dyadic else rank**0.5),
            "right": self.numbers(inputs, rank),
            "row": self.numbers(inputs),
        }


def logits(layer: dict[str, Any]) -> Tensor:
    return layer["left"] @ layer["right"].T + layer["row"]


def reference(layer: dict[str, Any], tau: float = 1.0, noise: Tensor | None = None) -> Tensor:
    """Return the layer's outputs by way of expanded masks, in float32."""
    scores = logits(layer)
    if noise is None:
        masks = threshold(scores, tau)
    else:
        groups = max(len(scores), len(noise))
        scores, noise = (t.repeat(groups // len(t), 1, 1) for t in (scores, noise))
        masks = gumbel_sigmoid(scores, noise, tau)
    bias = None if layer["bias"] is None else layer["bias"].float()
    return masked_linear(layer["x"].float(), layer["weight"].float(), bias, masks)


def gradients(outputs: Tensor, layer: dict[str, Any], weights: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, [layer[name] for name in GRADIENTS], weights.to(outputs.dtype)))


def trained(layer: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().clone().requires_grad_() if k in GRADIENTS else v for k, v in layer.items()}


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Check that two tensors differ by no more than a fraction of the greatest number."""
    assert ours.shape == theirs.shape
    if ours.numel():
        scale = max(1.0, theirs.float().abs().max().item())
        assert (ours.float() - theirs.float()).abs().max().item() <= tolerance * scale


@given(seeds, tokens, wide, wide, ranks, sets, st.booleans())
@example(0, 17, 33, 19, 37, 2, True)
def test_exact_numbers_give_exactly_the_reference(
    seed: int, count: int, outputs: int, inputs: int, rank: int, masks: int, biased: bool
) -> None:
    layer = Case(seed, dyadic=True).layer(4, count, outputs, inputs, rank=rank, masks=masks, biased=biased)
    assert torch.equal(triton_factored_linear(**layer), reference(layer))


def test_the_masks_themselves_are_the_reference() -> None:
    layer = Case(0, dyadic=True).layer(2, 33, 20, 33, rank=3, masks=2)
    layer |= {
        "x": torch.eye(33, device=DEVICE).repeat(2, 1, 1),
        "weight": torch.ones(20, 33, device=DEVICE),
        "bias": None,
    }
    assert torch.equal(triton_factored_linear(**layer).transpose(1, 2), threshold(logits(layer)))


@given(seeds, tokens, wide, wide, ranks, sets, st.sampled_from([0.3, 1.0]), st.booleans())
@example(1, 17, 33, 20, 37, 2, 0.7, True)
@example(2, 3, 20, 33, 4, 1, 0.7, False)
def test_outputs_and_gradients(
    seed: int, count: int, outputs: int, inputs: int, rank: int, masks: int, tau: float, deterministic: bool
) -> None:
    case = Case(seed)
    layer = trained(case.layer(4, count, outputs, inputs, rank=rank, masks=masks))
    assume((logits(layer) - THRESHOLD).abs().min() > 1e-5)  # rounding may decide the others either way
    theirs = reference(layer, tau)
    torch.use_deterministic_algorithms(deterministic)
    try:
        ours = triton_factored_linear(**layer, tau=tau)
        close(ours, theirs, 1e-5)
        weights = case.numbers(*theirs.shape)
        for name, a, b in zip(GRADIENTS, *(gradients(y, layer, weights) for y in (ours, theirs)), strict=True):
            assert a.dtype == layer[name].dtype
            close(a, b, 1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 1])
def test_half_precision(dtype: torch.dtype, seed: int) -> None:
    case = Case(seed, dtype=dtype)
    layer = trained(case.layer(4, 5, 19, 33, rank=5, masks=2))
    assert (logits(layer) - THRESHOLD).abs().min() > 1e-5
    ours, theirs = triton_factored_linear(**layer), reference(layer)
    assert ours.dtype == dtype
    close(ours, theirs, 2e-2)
    weights = case.numbers(*theirs.shape).to(dtype)
    for a, b in zip(gradients(ours, layer, weights), gradients(theirs, layer, weights), strict=True):
        close(a, b, 2e-2)


def test_autocast_works_in_its_dtype() -> None:
    layer = trained(Case(0).layer(2, 3, 5, 7, rank=2, masks=2))
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = triton_factored_linear(**layer)
    assert ours.dtype == torch.bfloat16
    close(ours, reference(layer), 2e-2)
    ours.float().sum().backward()
    assert layer["x"].grad.dtype == layer["left"].grad.dtype == torch.float32


@given(seeds, tokens, wide, st.integers(1, 4), sets, st.booleans())
def test_packed(seed: int, count: int, outputs: int, bytes_: int, masks: int, biased: bool) -> None:
    case = Case(seed, dyadic=True)
    layer = case.layer(4, count, outputs, 8 * bytes_, rank=1, masks=masks, biased=biased)
    x, weight, bias = layer["x"].requires_grad_(), layer["weight"], layer["bias"]
    mask = (torch.rand(masks, *weight.shape, generator=case.generator) < 0.6).to(DEVICE)
    ours, theirs = triton_packed_linear(x, weight, bias, pack_bits(mask), masks), masked_linear(x, weight, bias, mask)
    assert torch.equal(ours, theirs)
    weights = case.numbers(*theirs.shape)
    assert torch.equal(*(torch.autograd.grad(y, x, weights)[0] for y in (ours, theirs)))


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_leading_dimensions(shape: tuple[int, ...], masks: int) -> None:
    layer = Case(0, dyadic=True).layer(4, 1, 5, 16, rank=2, masks=masks)
    layer["x"] = Case(1, dyadic=True).numbers(*shape, 16)
    assert torch.equal(triton_factored_linear(**layer), reference(layer))
    mask = threshold(logits(layer))
    packed = triton_packed_linear(layer["x"], layer["weight"], layer["bias"], pack_bits(mask), masks)
    assert torch.equal(packed, reference(layer))


@pytest.mark.parametrize("masks", [1, 2])
def test_views_and_expanded_gradients(masks: int) -> None:
    case = Case(0, dyadic=True)
    layer = case.layer(4, 5, 7, 9, rank=3, masks=masks)
    layer |= {"x": case.numbers(9, 5, 8).permute(2, 1, 0)[::2], "weight": case.numbers(9, 14).T[::2]}
    layer |= {"left": case.numbers(3, 7, masks).permute(2, 1, 0), "right": case.numbers(3, 9).T}
    layer |= {"row": case.numbers(18)[::2]}
    for name in GRADIENTS:
        layer[name].requires_grad_()
        assert not layer[name].is_contiguous()
    ours, theirs = triton_factored_linear(**layer), reference(layer)
    assert torch.equal(ours, theirs)
    ones = torch.ones((), device=DEVICE).expand(theirs.shape)  # what sum() hands back
    for a, b in zip(gradients(ours, layer, ones), gradients(theirs, layer, ones), strict=True):
        close(a, b, 1e-5)


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (0, 7)])
def test_nothing_in_gives_nothing_out(shape: tuple[int, ...]) -> None:
    layer = Case(0).layer(2, 1, 3, 7, rank=2, masks=2)
    layer = trained(layer | {"x": torch.zeros(shape, device=DEVICE)})
    ours = triton_factored_linear(**layer)
    assert ours.shape == (*shape[:-1], 3)
    assert not any(grad.any() for grad in gradients(ours, layer, ours))


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_only_where_they_are_needed(name: str) -> None:
    layer = Case(0).layer(2, 3, 5, 7, rank=2, masks=1)
    layer[name].requires_grad_()
    ours = triton_factored_linear(**layer)
    held = [t.data_ptr() for t in saved(ours) if t is not None]
    assert (layer["x"].data_ptr() in held) == (name != "x")
    close(
        torch.autograd.grad(ours.sum(), layer[name])[0],
        torch.autograd.grad(reference(layer).sum(), layer[name])[0],
        1e-5,
    )


def saved(outputs: Tensor) -> tuple[Tensor, ...]:
    node = outputs.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    return node.saved_tensors


@pytest.mark.parametrize(("masks", "draws"), [(2, 2), (1, 4), (2, 4), (4, 2), (2, 1)])
def test_noise_is_drawn_again_for_the_gradient(masks: int, draws: int) -> None:
    case = Case(0)
    layer = trained(case.layer(4, 3, 17, 18, rank=4, masks=masks))
    seed = torch.arange(draws, device=DEVICE) + 2**40
    noise = triton_gumbel_noise(seed, (17, 18))
    assert len({tuple(draw.flatten().tolist()) for draw in noise}) == draws
    ours, theirs = triton_factored_linear(**layer, tau=0.7, seed=seed), reference(layer, 0.7, noise)
    close(ours, theirs, 1e-5)
    weights = case.numbers(*theirs.shape)
    expected = gradients(theirs, layer, weights)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        again = gradients(triton_factored_linear(**layer, tau=0.7, seed=seed), layer, weights)
        torch.use_deterministic_algorithms(False)
        for a, b in zip(again, expected, strict=True):
            close(a, b, 1e-4)


def test_noise_has_the_gumbel_distribution() -> None:
    noise = triton_gumbel_noise(torch.arange(8, device=DEVICE), (64, 64))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    for logit in (-2.0, THRESHOLD, 1.0):
        kept = (noise + logit > 0).float().mean().item()
        assert kept == pytest.approx(keep_probability(torch.tensor(logit)).item(), abs=0.015)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "inputs": ({"x": torch.zeros(4, 3, 6)}, "expected inputs"),
    "no batch": ({"x": torch.zeros(7)}, "expected inputs"),
    "bias": ({"bias": torch.zeros(4)}, "expected a bias"),
    "left": ({"left": torch.zeros(2, 4, 2)}, "expected factors"),
    "shared left": ({"left": torch.zeros(5, 2)}, "expected factors"),
    "right": ({"right": torch.zeros(7, 3)}, "expected factors"),
    "row": ({"row": torch.zeros(1)}, "expected factors"),
    "sets": ({"left": torch.zeros(3, 5, 2)}, "expected a batch that is a multiple of the 3 masks"),
    "no sets": ({"left": torch.zeros(0, 5, 2), "seed": None}, "expected a batch"),
    "tau": ({"tau": 0.0}, "expected a finite temperature"),
    "seed": ({"seed": torch.zeros(2)}, "expected seeds as integers"),
    "seeds": ({"seed": torch.arange(3), "x": torch.zeros(6, 1, 7)}, "expected a multiple or a divisor"),
    "double": ({"x": torch.zeros(4, 3, 7).double()}, "expected inputs and weight of one dtype"),
    "weight": ({"weight": torch.zeros(5, 7, requires_grad=True)}, "expected a frozen weight"),
    "device": ({"row": torch.zeros(7, device="meta")}, "expected all tensors on one device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_clear_errors(name: str) -> None:
    layer = Case(0).layer(4, 3, 5, 7, rank=2, masks=2)
    change, words = WRONG[name]
    change = {k: v.to(DEVICE) if isinstance(v, Tensor) and v.device.type == "cpu" else v for k, v in change.items()}
    with pytest.raises(ValueError, match=words):
        triton_factored_linear(**(layer | change))


def test_clear_errors_of_packed_masks() -> None:
    x, weight = torch.zeros(4, 3, 16, device=DEVICE), torch.zeros(5, 16, device=DEVICE)
    packed = torch.zeros(20, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(ValueError, match="a multiple of 8, got 15"):
        triton_packed_linear(x[..., :15], weight[:, :15], None, packed, 2)
    for wrong in (packed[:-1], packed.int(), packed[None]):
        with pytest.raises(ValueError, match=r"expected 2 packed masks of shape \(5, 16\) as \(20,\)"):
            triton_packed_linear(x, weight, None, wrong, 2)
    for count in (0, 3):
        with pytest.raises(ValueError, match="expected a batch that is a multiple"):
            triton_packed_linear(x, weight, None, packed, count)


def test_a_second_derivative_is_refused() -> None:
    layer = trained(Case(0).layer(2, 3, 5, 7, rank=2, masks=1))
    (grad,) = torch.autograd.grad(triton_factored_linear(**layer).square().sum(), layer["left"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_kernels_are_available() -> None:
    assert triton_launch.available(DEVICE)
    assert triton_launch.available(torch.device(DEVICE))


@pytest.mark.parametrize("drawn", [None, 3, (3, 4)])
def test_what_is_recorded_is_what_is_computed(drawn: int | tuple[int, ...] | None) -> None:
    from maskunet.maskers.forms import FactoredLogits, PackedMask
    from maskunet.maskers.layer_mask import Draw
    from maskunet.network import LayerSpec
    from maskunet.operators import using

    made = Case(0).layer(2, 5, 24, 16, rank=4, masks=2)
    layer, draw = LayerSpec("up_blocks.0.to_q", (24, 16)), Draw(seed=drawn)
    module = torch.nn.Linear(16, 24).to(DEVICE).requires_grad_(False)
    form = FactoredLogits((made["left"], made["right"]), made["row"], (24, 16))
    mask = form.mask(layer, draw, 2)
    expected = form.apply(layer, module, made["x"], mask)
    for name in ("auto", "tiled", "reference"):
        with using(name):
            torch.testing.assert_close(form.run(layer, module, made["x"], draw, 2), expected, atol=1e-5, rtol=1e-5)
    packed = PackedMask(pack_bits(mask), None if mask.ndim == 2 else 2)
    torch.testing.assert_close(packed.run(layer, module, made["x"], draw, 2), expected, atol=1e-5, rtol=1e-5)


def test_factors_in_half_precision_give_the_masks_of_the_same_in_single() -> None:
    from maskunet.operators import factored_linear, using

    made = Case(0).layer(2, 64, 64, 64, rank=16, masks=2, biased=False)
    made |= {"x": torch.eye(64, device=DEVICE).repeat(2, 1, 1), "weight": torch.ones(64, 64, device=DEVICE)}
    made |= {name: made[name].bfloat16() for name in ("left", "right", "row")}
    found = {}
    for name in ("triton", "tiled", "reference"):
        with using(name):
            found[name] = factored_linear(**made)
    single = made | {name: made[name].float() for name in ("left", "right", "row")}
    for masks in found.values():
        # Sums may run in another order on a GPU: the few logits at the very threshold are left out.
        clear = (logits(single) - THRESHOLD).abs() > 1e-5
        assert torch.equal(masks.mT[clear], threshold(logits(single))[clear])


def test_a_base_that_trains_takes_the_reference_under_packed_masks() -> None:
    from maskunet.operators import packed_linear

    case = Case(0)
    layer = case.layer(2, 3, 16, 16, rank=1, masks=1)
    x, weight = layer["x"], layer["weight"].requires_grad_()
    mask = (torch.rand(16, 16, generator=case.generator) < 0.6).to(DEVICE)
    packed_linear(x, weight, layer["bias"], pack_bits(mask)).sum().backward()
    assert torch.equal(weight.grad != 0, mask)
