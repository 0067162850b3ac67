r"""Masked linear layers whose masks are computed inside the product, by Triton kernels, and never stored.

They compute what `masked_linear` does with `threshold(left @ right^T + row)` or with unpacked bits, and the same
gradients to inputs and factors, up to rounding. Weight and bias are frozen.

By default the gradients of the factors are summed by atomic additions, whose order, and with it the rounding, differs
from run to run on a GPU. Under `torch.use_deterministic_algorithms(True)` every tile fills its own slot and the slots
are summed in order, which takes about r / 32 of the expanded logits' memory per factor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import SettingError
from .reference import check_mask_count
from .triton_launch import launch_factor_gradients, launch_product

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def supports(x: Tensor, weight: Tensor) -> bool:
    """Return whether the kernels take a layer: one dtype, or any under autocast, and a batch dimension.

    Args:
        x: inputs.
        weight: the weight.
    """
    is_cast = torch.is_autocast_enabled(x.device.type)
    return x.ndim > 1 and (is_cast or (x.dtype == weight.dtype and x.dtype in _DTYPES))


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def triton_factored_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    row: Tensor,
    tau: float = 1.0,
    seed: Tensor | None = None,
) -> Tensor:
    r"""Apply a linear layer under masks from the factors of their logits, S = left @ right^T + row.

    Row b of the batch takes mask b mod M. Without a seed a weight is kept iff S >= log log 2, with one iff S + g > 0 for
    Gumbel noise g. The kernel draws g from (seed, index of the weight), the same in the backward pass, and another stream
    than `maskunet.relaxation.gumbel_noise`; `triton_gumbel_noise` returns it.

    Args:
        x: inputs (B, ..., I), float32, float16 or bfloat16. Under autocast x and weight are cast as `F.linear` does.
        weight: (O, I), frozen, in the dtype of x.
        bias: (O,) or None, frozen.
        left: (M, O, r) where M divides B; used in float32, like the other factors.
        right: (I, r).
        row: (I,).
        tau: temperature of the straight-through gradient, > 0.
        seed: None, or integers (D,), one per draw: row b takes noise b mod D. D is a multiple or a divisor of M.

    Returns:
        Outputs (B, ..., O) in the dtype of x, differentiable once in x, left, right and row.

    Raises:
        SettingError: `tau` is not positive.
        ValueError: shapes, dtypes or devices do not fit, or weight or bias requires a gradient.
    """
    x, weight = _checked_layer(x, weight, bias)
    num_masks, draws = (left.shape[0] if left.ndim else 0), (1 if seed is None else seed.numel())
    outputs, inputs = weight.shape
    if left.ndim != 3 or (left.shape[1], right.shape, row.shape) != (outputs, (inputs, left.shape[2]), (inputs,)):
        raise ValueError(
            f"expected factors left (M, {outputs}, r), right ({inputs}, r) and row ({inputs},), "
            f"got {tuple(left.shape)}, {tuple(right.shape)} and {tuple(row.shape)}"
        )
    if not 0 < tau < math.inf:
        raise SettingError(f"expected a finite temperature tau > 0, got {tau}")
    if seed is not None and (seed.ndim != 1 or seed.is_floating_point() or not draws):
        raise ValueError(f"expected seeds as integers (D,), got {tuple(seed.shape)} of {seed.dtype}")
    groups = max(num_masks, draws)
    if num_masks and groups % min(num_masks, draws):
        raise ValueError(f"expected a multiple or a divisor of {num_masks} seeds for {num_masks} masks, got {draws}")
    check_mask_count(groups if num_masks else 0, x.shape[0])
    _check_device(x, left=left, right=right, row=row, **({} if seed is None else {"seed": seed}))
    seeds = None if seed is None else seed.to(torch.int64).contiguous()
    factors = (left.float(), right.float(), row.float())
    out = _FactoredLinear.apply(_by_group(x, groups), weight, bias, *factors, seeds, float(tau))
    return out.reshape(*x.shape[:-1], outputs)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def triton_packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, num_masks: int) -> Tensor:
    """Apply a linear layer under masks at one bit per weight.

    Args:
        x: inputs (B, ..., I), float32, float16 or bfloat16. Under autocast x and weight are cast as `F.linear` does.
        weight: (O, I), frozen, in the dtype of x; I is a multiple of 8.
        bias: (O,) or None, frozen.
        packed: masks (M, O, I), packed by `pack_bits` into (M * O * I / 8,) of uint8.
        num_masks: M, a divisor of B: row b takes mask b mod M.

    Returns:
        Outputs (B, ..., O) in the dtype of x, differentiable once in x.

    Raises:
        ValueError: I is no multiple of 8, shapes, dtypes or devices do not fit, or weight or bias requires a gradient.
    """
    x, weight = _checked_layer(x, weight, bias)
    outputs, inputs = weight.shape
    if inputs % 8:
        raise ValueError(
            f"expected inputs in whole bytes of the packed masks, a multiple of 8, got {inputs}; unpack them"
        )
    check_mask_count(num_masks, x.shape[0])
    count = num_masks * outputs * inputs // 8
    if packed.dtype != torch.uint8 or packed.shape != (count,):
        raise ValueError(
            f"expected {num_masks} packed masks of shape {(outputs, inputs)} as ({count},) of torch.uint8, "
            f"got {tuple(packed.shape)} of {packed.dtype}"
        )
    _check_device(x, packed=packed)
    out = _PackedLinear.apply(_by_group(x, num_masks), weight, bias, packed.contiguous(), num_masks)
    return out.reshape(*x.shape[:-1], outputs)


class _FactoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *masks: Any) -> Tensor:
        *factors, seeds, tau = masks
        # The kernels read factors row by row; a copy of them is small.
        factors = [factor.contiguous() for factor in factors]
        ctx.tau = tau
        ctx.save_for_backward(x if any(ctx.needs_input_grad[3:6]) else None, weight, *factors, seeds)
        return launch_product(x, weight, bias, (*factors, seeds, None, len(factors[0])))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        masks = (*factors, None, len(factors[0]))
        grad_x = launch_product(grad, weight, None, masks, is_transposed=True) if ctx.needs_input_grad[0] else None
        needs = ctx.needs_input_grad[3:6]
        grad_factors: tuple[Tensor | None, ...] = (None, None, None)
        if any(needs):
            grad_factors = launch_factor_gradients(x, grad, weight, tuple(factors), ctx.tau, needs)
        return (grad_x, None, None, *grad_factors, None, None)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, num_masks: int) -> Tensor:
        ctx.num_masks = num_masks
        ctx.save_for_backward(weight, packed)
        return launch_product(x, weight, bias, (None, None, None, None, packed, num_masks))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, packed = ctx.saved_tensors
        masks = (None, None, None, None, packed, ctx.num_masks)
        return launch_product(grad, weight, None, masks, is_transposed=True), None, None, None, None


def _checked_layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
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


def _check_device(x: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"expected all tensors on one device, got x on {x.device} and {name} on {other.device}")


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Return x as (B, N, I); a shared mask sees all samples as one, whose tokens fill the tiles."""
    batch = 1 if groups == 1 else x.shape[0]
    return x.reshape(batch, math.prod(x.shape[:-1]) // batch if batch else 0, x.shape[-1])
