r"""Masked linear layers that make the mask inside the product, by Triton kernels: no mask of a sample is ever stored.

They compute what `masked_linear` does on `threshold(left @ right^T + row)` or on unpacked bits, and give the same
gradients to the inputs and the factors, but for rounding. Weight and bias are frozen. `available` says where they run.

By default the gradients of the factors are summed by atomic additions, whose order, and with it the rounding, differs
from run to run on a GPU. Under `torch.use_deterministic_algorithms(True)` every tile fills a slot of its own and the
slots are summed in order, which takes about r / 32 of the expanded logits' memory for each factor.
"""

from __future__ import annotations

import contextlib
import math
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Fused multiply-adds are triton's default, which 3.9 warns of where it is not said.
_OPTIONS = {"num_stages": 2, "enable_fp_fusion": True, "WIDE": False}


def available(device: torch.device | str) -> bool:
    """Return whether the kernels run on a device: triton is there, and a GPU or triton's interpreter."""
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET", "0") == "0":
        return False  # without an import of triton
    try:
        kernels = _kernels()
    except ImportError:
        return False
    return torch.device(device).type == "cuda" or _interpreted(kernels)


def supports(x: Tensor, weight: Tensor) -> bool:
    """Return whether the kernels take these: one dtype, or any under autocast, and a batch dimension."""
    cast = torch.is_autocast_enabled(x.device.type)
    return x.ndim > 1 and (cast or (x.dtype == weight.dtype and x.dtype in _DTYPES))


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def factored_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    row: Tensor,
    tau: float = 1.0,
    seed: Tensor | None = None,
) -> Tensor:
    r"""Apply a linear layer under masks given by the factors of their logits, S = left @ right^T + row.

    Row b of the batch takes set b mod M of the masks. Without a seed a weight is kept iff S >= log log 2, with one iff
    S + g > 0 for Gumbel noise g, drawn in the kernel from (seed, index of the weight): the same in the backward, and
    another stream than that of `maskunet.relaxation.gumbel_noise` and torch. `kernel_noise` writes it out.

    Args:
        x: inputs (B, ..., I), float32, float16 or bfloat16. Under autocast x and weight are cast as `F.linear` does.
        weight: (O, I), frozen, in the dtype of x.
        bias: (O,) or None, frozen.
        left: (M, O, r) where M divides B; computed with in float32, as the other factors.
        right: (I, r).
        row: (I,).
        tau: temperature of the straight-through gradient, > 0.
        seed: None, or integers (D,), one for each draw: row b takes noise b mod D. D is a multiple or a divisor of M.

    Returns:
        Outputs (B, ..., O) in the dtype of x, differentiable once in x, left, right and row.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, `tau` is not positive, or weight or bias is to be trained.
    """
    x, weight = _check_product(x, weight, bias)
    sets, draws = (left.shape[0] if left.ndim else 0), (1 if seed is None else seed.numel())
    outputs, inputs = weight.shape
    if left.ndim != 3 or (left.shape[1], right.shape, row.shape) != (outputs, (inputs, left.shape[2]), (inputs,)):
        raise ValueError(
            f"expected factors left (M, {outputs}, r), right ({inputs}, r) and row ({inputs},), "
            f"got {tuple(left.shape)}, {tuple(right.shape)} and {tuple(row.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"expected a temperature tau > 0, got {tau}")
    if seed is not None and (seed.ndim != 1 or seed.is_floating_point() or not draws):
        raise ValueError(f"expected seeds as integers (D,), got {tuple(seed.shape)} of {seed.dtype}")
    groups = max(sets, draws)
    if sets and groups % min(sets, draws):
        raise ValueError(f"expected a multiple or a divisor of {sets} seeds for {sets} sets of masks, got {draws}")
    _check_sets(x, groups if sets else 0)
    _check_device(x, left=left, right=right, row=row, **({} if seed is None else {"seed": seed}))
    seeds = None if seed is None else seed.to(torch.int64).contiguous()
    factors = (left.float(), right.float(), row.float())
    out = _FactoredLinear.apply(_samples(x, groups), weight, bias, *factors, seeds, float(tau))
    return out.reshape(*x.shape[:-1], outputs)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, samples: int) -> Tensor:
    """Apply a linear layer under masks at one bit a weight.

    Args:
        x: inputs (B, ..., I), float32, float16 or bfloat16. Under autocast x and weight are cast as `F.linear` does.
        weight: (O, I), frozen, in the dtype of x; I is a multiple of 8.
        bias: (O,) or None, frozen.
        packed: (M * O * I / 8,) uint8, what `pack_bits` makes of masks (M, O, I).
        samples: M, which divides B: row b takes mask b mod M.

    Returns:
        Outputs (B, ..., O) in the dtype of x, differentiable once in x.

    Raises:
        ValueError: I is no multiple of 8, shapes, dtypes or devices do not fit, or weight or bias is to be trained.
    """
    x, weight = _check_product(x, weight, bias)
    outputs, inputs = weight.shape
    if inputs % 8:
        raise ValueError(
            f"expected inputs in whole bytes of the packed masks, a multiple of 8, got {inputs}; unpack them"
        )
    _check_sets(x, samples)
    count = samples * outputs * inputs // 8
    if packed.dtype != torch.uint8 or packed.shape != (count,):
        raise ValueError(
            f"expected {samples} packed masks of shape {(outputs, inputs)} as ({count},) of torch.uint8, "
            f"got {tuple(packed.shape)} of {packed.dtype}"
        )
    _check_device(x, packed=packed)
    out = _PackedLinear.apply(_samples(x, samples), weight, bias, packed.contiguous(), samples)
    return out.reshape(*x.shape[:-1], outputs)


def kernel_noise(seed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the Gumbel noise (D, *shape) that `factored_linear` draws for seeds (D,) and a weight of a shape."""
    noise = torch.empty(len(seed), *shape, device=seed.device)
    tiles = {"BLOCK_O": 32, "BLOCK_I": 32}
    with _on(noise):
        grid = (-(-shape[0] // 32), -(-shape[1] // 32), len(seed))
        _kernels().gumbel[grid](seed.to(torch.int64).contiguous(), noise, *shape, **tiles)
    return noise


class _FactoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *masks: Any) -> Tensor:
        *factors, seeds, tau = masks
        # The kernels take factors row by row; a copy of these is small.
        factors = [factor.contiguous() for factor in factors]
        ctx.tau = tau
        ctx.save_for_backward(x if any(ctx.needs_input_grad[3:6]) else None, weight, *factors, seeds)
        return _product(x, weight, bias, (*factors, seeds, None, len(factors[0])))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        masks = (*factors, None, len(factors[0]))
        grad_x = _product(grad, weight, None, masks, transposed=True) if ctx.needs_input_grad[0] else None
        needs = ctx.needs_input_grad[3:6]
        changes = _factor_gradients(x, grad, weight, tuple(factors), ctx.tau, needs) if any(needs) else (None,) * 3
        return (grad_x, None, None, *changes, None, None)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, samples: int) -> Tensor:
        ctx.samples = samples
        ctx.save_for_backward(weight, packed)
        return _product(x, weight, bias, (None, None, None, None, packed, samples))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, packed = ctx.saved_tensors
        masks = (None, None, None, None, packed, ctx.samples)
        return _product(grad, weight, None, masks, transposed=True), None, None, None, None


def _product(
    a: Tensor, weight: Tensor, bias: Tensor | None, masks: tuple[Any, ...], *, transposed: bool = False
) -> Tensor:
    """Return (B, N, O) of inputs (B, N, I), or (B, N, I) of gradients (B, N, O) if `transposed`."""
    left, right, row, seeds, packed, sets = masks
    rank = 0 if left is None else left.shape[2]
    samples, tokens = a.shape[:2]
    a, weight = _in_rows(a), _in_rows(weight)
    out = a.new_empty(samples, tokens, weight.shape[1 if transposed else 0])
    if not out.numel():
        return out
    kernels = _kernels()
    gpu = _product_tiles(tokens, rank, a.dtype, transposed)
    tiles = _interpreter_tiles(a.dtype) if _interpreted(kernels) else gpu
    width = tiles["BLOCK_I" if transposed else "BLOCK_O"]
    grid = (-(-tokens // tiles["BLOCK_N"]), -(-out.shape[2] // width), samples)
    sizes = (tokens, *weight.shape, sets, 1 if seeds is None else len(seeds), *a.stride(), *weight.stride())
    flags = {"PACKED": packed is not None, "BIASED": bias is not None, "TRANSPOSED": transposed}
    flags |= {"NOISE": seeds is not None}
    given = (a, weight, bias, left, right, row, seeds, packed, out)
    with _on(a):
        kernels.product[grid](*given, *sizes, RANK=rank, **flags, **tiles)
    return out


def _factor_gradients(
    x: Tensor, grad: Tensor, weight: Tensor, factors: tuple[Any, ...], tau: float, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return float32 gradients to left (M, O, r), right (I, r) and row (I,), each where it is needed."""
    left, *_, seeds = factors
    (samples, tokens, inputs), (sets, outputs, rank) = x.shape, left.shape
    draws = 1 if seeds is None else len(seeds)
    groups = max(sets, draws)
    x, grad, weight = _in_rows(x), _in_rows(grad), _in_rows(weight)
    kernels = _kernels()
    tiles = _interpreter_tiles(x.dtype) if _interpreted(kernels) else _gradient_tiles(rank)
    grid = (-(-outputs // tiles["BLOCK_O"]), -(-inputs // tiles["BLOCK_I"]), groups)
    atomic = not torch.are_deterministic_algorithms_enabled()
    slots = (1, 1, 1) if atomic else (grid[1] * (groups // sets), grid[0] * groups, grid[0] * groups)
    sums = [f.new_zeros(n, *f.shape) if need else None for f, n, need in zip(factors, slots, needs, strict=False)]
    sizes = (samples, tokens, outputs, inputs, sets, draws, groups, tau)
    strides = (*x.stride(), *grad.stride(), *weight.stride())
    flags = dict(zip(("LEFT", "RIGHT", "ROW"), needs, strict=True))
    flags |= {"RANK": rank, "NOISE": seeds is not None, "ATOMIC": atomic}
    if samples and tokens:
        with _on(x):
            given = (x, grad, weight, *factors, *sums)
            kernels.factor_gradients[grid](*given, *sizes, *strides, **flags, **tiles)
    return tuple(None if s is None else s[0] if atomic else s.sum(0) for s in sums)


def _product_tiles(tokens: int, rank: int, dtype: torch.dtype, transposed: bool) -> dict[str, Any]:
    """Return the tile sizes and warps of `product` on a GPU, which seldom spill registers up to rank 32."""
    half = dtype != torch.float32
    # Many tokens a tile share the work of making the mask.
    many = 128 if half and tokens > 64 else 64 if tokens > 16 else 16
    depth = 64 if half else 16  # float32 is multiplied without tensor cores, from registers
    sizes = {"BLOCK_N": many, "BLOCK_O": depth if transposed else 64, "BLOCK_I": 64 if transposed else depth}
    return sizes | {"BLOCK_R": _rank_block(rank), "num_warps": 4 if half and many < 128 else 8} | _OPTIONS


def _gradient_tiles(rank: int) -> dict[str, Any]:
    """Return those of `factor_gradients`."""
    sizes = {"BLOCK_N": 32, "BLOCK_O": 64, "BLOCK_I": 64 if rank <= 16 else 32, "BLOCK_R": _rank_block(rank)}
    return sizes | {"num_warps": 8} | _OPTIONS


def _rank_block(rank: int) -> int:
    return 16 if rank <= 16 else 32  # 16 is the least that tl.dot takes


def _interpreter_tiles(dtype: torch.dtype) -> dict[str, Any]:
    """Return the least tiles there are, so that small tests cross their borders."""
    return dict.fromkeys(("BLOCK_N", "BLOCK_O", "BLOCK_I", "BLOCK_R"), 16) | {"WIDE": dtype == torch.bfloat16}


def _check_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x and weight, cast under autocast, or raise."""
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"expected inputs (B, ..., I) for a weight (O, I), got {tuple(x.shape)} for {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected a bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        raise ValueError(
            "expected a frozen weight and bias, got one that requires a gradient; freeze it, or use masked_linear"
        )
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if x.dtype != weight.dtype or x.dtype not in _DTYPES:
        raise ValueError(
            f"expected inputs and weight of one dtype, float32, float16 or bfloat16, got {x.dtype} and {weight.dtype}"
        )
    _check_device(x, weight=weight, **({} if bias is None else {"bias": bias}))
    return x, weight


def _check_sets(x: Tensor, groups: int) -> None:
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(
            f"expected a batch that is a multiple of the {groups} masks given, got {x.shape[0]} samples; "
            "give one mask for all samples or one for each"
        )


def _check_device(x: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"expected all tensors on one device, got x on {x.device} and {name} on {other.device}")


def _samples(x: Tensor, groups: int) -> Tensor:
    """Return x as (B, N, I); a mask that all samples share sees them as one, whose tokens fill the tiles."""
    batch = 1 if groups == 1 else x.shape[0]
    return x.reshape(batch, math.prod(x.shape[:-1]) // batch if batch else 0, x.shape[-1])


def _in_rows(tensor: Tensor) -> Tensor:
    """Copy a tensor whose last dimension is strided: on a GPU a copy costs less than to read it so, tile by tile."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _interpreted(kernels: ModuleType) -> bool:
    return type(kernels.product).__name__ == "InterpretedFunction"


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Side a tensor's GPU the current one, where triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
