"""Masked layers against a loop over the samples, and packing against its inverse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskunet.operators import masked_conv2d, masked_linear, pack_bits, unpack_bits

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 5e-2, torch.float16: 1e-2}
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 7)
dtypes = st.sampled_from(list(TOLERANCES))
#: Masks for a batch: "shared" has the weight's shape, a number holds so many sets for twice as many samples.
kinds = st.sampled_from(["shared", "one", "cyclic", "each"])


class Numbers:
    """Seeded tensors."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def mask(self, kind: str, batch: int, shape: tuple[int, ...]) -> Tensor:
        lead = {"shared": (), "one": (1,), "cyclic": (batch // 2,), "each": (batch,)}[kind]
        return torch.rand((*lead, *shape), generator=self.generator) < 0.6


def row_mask(mask: Tensor, weight: Tensor, row: int) -> Tensor:
    return (mask if mask.ndim == weight.ndim else mask[row % len(mask)]).to(weight.dtype)


def close(ours: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(ours.double(), reference.double(), atol=tolerance * 3, rtol=tolerance)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    rows = [F.linear(x[r], weight * row_mask(mask, weight, r), bias) for r in range(len(x))]
    return torch.stack(rows)


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, **options: object) -> Tensor:
    rows = [F.conv2d(x[r], weight * row_mask(mask, weight, r), bias, **options) for r in range(len(x))]  # type: ignore[arg-type]
    return torch.stack(rows)


@given(
    st.integers(1, 3), st.lists(sizes, max_size=3), sizes, sizes, st.booleans(), kinds, dtypes, st.booleans(), seeds
)
def test_linear_is_the_loop_over_samples(
    half: int,
    inner: list[int],
    inputs: int,
    outputs: int,
    has_bias: bool,
    kind: str,
    dtype: torch.dtype,
    float_mask: bool,
    seed: int,
) -> None:
    numbers = Numbers(seed, dtype)
    x = numbers.normal(2 * half, *inner, inputs)
    weight, bias = numbers.normal(outputs, inputs), numbers.normal(outputs) if has_bias else None
    mask = numbers.mask(kind, 2 * half, (outputs, inputs))
    before = weight.clone()
    ours = masked_linear(x, weight, bias, mask.float() if float_mask else mask)
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    close(ours, linear_reference(*wide, mask), dtype)  # type: ignore[arg-type]
    assert torch.equal(weight, before)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 3])),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.sampled_from([0, 1, (2, 1), "same", "valid"]),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
    kinds,
    dtypes,
    seeds,
)
def test_conv_is_the_loop_over_samples(
    half: int,
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int | str | tuple[int, int],
    dilation: tuple[int, int],
    has_bias: bool,
    kind: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    outputs, inputs, groups = channels
    stride = (1, 1) if padding == "same" else stride
    numbers = Numbers(seed, dtype)
    x = numbers.normal(2 * half, inputs * groups, 7, 6)
    weight = numbers.normal(outputs * groups, inputs, *kernel)
    bias = numbers.normal(outputs * groups) if has_bias else None
    mask = numbers.mask(kind, 2 * half, tuple(weight.shape))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    ours = masked_conv2d(x, weight, bias, mask, **options)  # type: ignore[arg-type]
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    close(ours, conv_reference(*wide, mask, **options), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["shared", "one", "cyclic", "each"])
def test_non_contiguous_tensors(kind: str) -> None:
    numbers = Numbers(0)
    x, weight = numbers.normal(5, 3, 4).permute(2, 1, 0), numbers.normal(5, 6).T
    mask = numbers.mask(kind, 4, (5, 6)).transpose(-1, -2)
    close(masked_linear(x, weight, None, mask), linear_reference(x, weight, None, mask), torch.float64)
    image = numbers.normal(4, 8, 8, 5).permute(0, 3, 1, 2)[:, :, ::2]
    kernel = numbers.normal(3, 3, 5, 2).permute(3, 2, 0, 1)
    mask = numbers.mask(kind, 4, (3, 3, 5, 2))
    mask = mask.permute(*range(mask.ndim - 4), -1, -2, -4, -3)
    close(masked_conv2d(image, kernel, None, mask), conv_reference(image, kernel, None, mask), torch.float64)


def test_unbatched_inputs_with_a_shared_mask() -> None:
    numbers = Numbers(1)
    x, weight, mask = numbers.normal(4), numbers.normal(3, 4), numbers.mask("shared", 1, (3, 4))
    for given_mask in (mask, mask[None]):
        close(masked_linear(x, weight, None, given_mask), (weight * mask) @ x, torch.float64)
    image, kernel, bias = numbers.normal(2, 5, 5), numbers.normal(3, 2, 3, 3), numbers.normal(3)
    mask = numbers.mask("shared", 1, (3, 2, 3, 3))
    close(masked_conv2d(image, kernel, bias, mask), F.conv2d(image, kernel * mask, bias), torch.float64)


@pytest.mark.parametrize(("kind", "lead"), [("shared", (0, 3)), ("one", (2, 0)), ("each", (2, 0)), ("each", (0, 3))])
def test_empty_inputs_give_empty_outputs(lead: tuple[int, ...], kind: str) -> None:
    numbers = Numbers(2)
    out = masked_linear(numbers.normal(*lead, 4), numbers.normal(3, 4), None, numbers.mask(kind, lead[0], (3, 4)))
    assert out.shape == (*lead, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["shared", "each"])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype, kind: str) -> None:
    numbers = Numbers(3, torch.float32)
    x, weight, bias = numbers.normal(4, 6, 8), numbers.normal(5, 8), numbers.normal(5)
    image, kernel, shift = numbers.normal(4, 2, 6, 6), numbers.normal(3, 2, 3, 3), numbers.normal(3)
    mask, kernel_mask = numbers.mask(kind, 4, (5, 8)), numbers.mask(kind, 4, (3, 2, 3, 3))
    with torch.autocast("cpu", dtype):
        linear = masked_linear(x, weight, bias, mask)
        conv = masked_conv2d(image, kernel, shift, kernel_mask)
    close(linear, linear_reference(x, weight, bias, mask), dtype)
    close(conv, conv_reference(image, kernel, shift, kernel_mask), dtype)


@pytest.mark.parametrize("kind", ["shared", "one", "cyclic", "each"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_gradients_of_inputs_weights_and_mask(kind: str, layer: str) -> None:
    numbers = Numbers(4)
    shapes = {"linear": ((4, 3, 5), (6, 5)), "conv": ((4, 4, 6, 5), (6, 2, 3, 2))}[layer]
    x, weight, bias = numbers.normal(*shapes[0]), numbers.normal(*shapes[1]), numbers.normal(6)
    leaves = [x, weight, bias, numbers.mask(kind, 4, shapes[1]).double()]
    for leaf in leaves:
        leaf.requires_grad_()
    if layer == "linear":
        ours, reference = masked_linear(*leaves), linear_reference(*leaves)
    else:
        options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
        ours, reference = masked_conv2d(*leaves, **options), conv_reference(*leaves, **options)  # type: ignore[arg-type]
    upstream = numbers.normal(*ours.shape)
    for found, expected in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(reference, leaves, upstream), strict=True
    ):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(3, 5), (4, 3), (12,), (2, 4, 3), (2, 1, 3, 4)])
def test_a_mask_of_another_shape_is_refused_by_name(shape: tuple[int, ...]) -> None:
    message = r"expected a mask of the weight's shape \(3, 4\).*got \(" + ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=message):
        masked_linear(torch.zeros(2, 4), torch.zeros(3, 4), None, torch.ones(shape))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 3, 1), (2, 3, 2, 3), (2, 3, 2, 1, 3), (1, 1, 3, 2, 3, 3)])
def test_a_conv_mask_of_another_shape_is_refused_by_name(shape: tuple[int, ...]) -> None:
    message = r"expected a mask of the weight's shape \(3, 2, 3, 3\).*got \(" + ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=message):
        masked_conv2d(torch.zeros(2, 2, 5, 5), torch.zeros(3, 2, 3, 3), None, torch.ones(shape))


@pytest.mark.parametrize(("masks", "batch"), [(2, 3), (4, 2), (3, 1), (0, 2)])
def test_a_batch_that_is_no_multiple_of_the_masks_is_refused(masks: int, batch: int) -> None:
    message = f"multiple of the {masks} masks given, got {batch} samples"
    with pytest.raises(ValueError, match=message):
        masked_linear(torch.zeros(batch, 7, 4), torch.zeros(3, 4), None, torch.ones(masks, 3, 4))
    with pytest.raises(ValueError, match=message):
        masked_conv2d(torch.zeros(batch, 4, 3, 3), torch.zeros(3, 4, 1, 1), None, torch.ones(masks, 3, 4, 1, 1))


@given(st.lists(st.integers(0, 9), max_size=4).map(tuple), seeds)
def test_packing_round_trip_at_one_bit_a_weight(shape: tuple[int, ...], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-mask.numel() // 8),)
    unpacked = unpack_bits(packed, shape)
    assert unpacked.dtype == torch.bool
    assert torch.equal(unpacked, mask)
    for dtype in TOLERANCES:
        numbers = unpack_bits(packed, shape, dtype)
        assert numbers.dtype == dtype
        assert torch.equal(numbers, mask.to(dtype))
    assert torch.equal(pack_bits(mask.half()), packed)


def test_packed_bits_have_the_most_significant_first() -> None:
    assert pack_bits(torch.tensor([1, 0, 0, 0, 0, 0, 1, 1, 0, 1])).tolist() == [0b10000011, 0b01000000]


@pytest.mark.parametrize(
    ("packed", "came"), [(torch.zeros(1, dtype=torch.uint8), "1 of torch.uint8"), (torch.zeros(2), "torch.float32")]
)
def test_unpacking_refuses_the_wrong_number_or_kind_of_bytes(packed: Tensor, came: str) -> None:
    with pytest.raises(ValueError, match=rf"expected 2 bytes \(uint8\) for a mask of shape \(3, 4\).*{came}"):
        unpack_bits(packed, (3, 4))
