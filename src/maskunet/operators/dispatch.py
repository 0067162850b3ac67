r"""Linear layers under masks that are never stored whole: from the factors of their logits, or from packed bits.

The implementation is chosen by device and size. All of them compute the same masks, and outputs that agree up to
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..relaxation import gumbel_noise, gumbel_sigmoid, threshold
from .implementation import choose_implementation
from .packing import unpack_bits
from .reference import check_mask_count, hard_masked_weights, linear_by_sample, masked_linear
from .tiled import CHEAP_RANK, tiled_factored_linear, tiled_packed_linear
from .triton_launch import available, triton_gumbel_noise
from .triton_linear import triton_factored_linear, triton_packed_linear


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def layer_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Draw the Gumbel noise of a layer, by the kernels where they run, so that all implementations draw the same.

    Args:
        shape: shape of the layer's weight.
        seed: seed of the noise.
        device: device of the noise.
    """
    if available(device):
        size = (shape[0], math.prod(shape[1:]))
        return triton_gumbel_noise(torch.tensor([seed], device=device), size).reshape(shape)
    return gumbel_noise(shape, seed, device=device)


def _noise_by_row(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Callable[[int], Tensor]:
    if len(seeds) == 1:
        shared = layer_noise(shape, seeds[0], device)
        return lambda row: shared
    return lambda row: layer_noise(shape, seeds[row % len(seeds)], device)


def at_least_single(factor: Tensor) -> Tensor:
    """Return a factor of logits in single precision at least, so that autocast and dtypes do not change masks.

    Args:
        factor: the factor, any shape.
    """
    return factor.float() if factor.dtype in (torch.float16, torch.bfloat16) else factor


def factored_logits(left: Tensor, right: Tensor, row: Tensor) -> Tensor:
    """Compute logits S = left @ right^T + row in single precision at least, under autocast too.

    Args:
        left: (M, O, r), or (O, r) for all samples.
        right: (I, r) for all samples, or (M, I, r); for kernels (M, kh, kw, I, r).
        row: (I,), added to every row.

    Returns:
        Logits (M, O, I); for kernels (M, kh, kw, O, I).
    """
    left, right, row = at_least_single(left), at_least_single(right), at_least_single(row)
    with torch.autocast(left.device.type, enabled=False):
        if right.ndim != 3:
            return (left @ right.mT).add_(row)
        # One product per sample, as in the tiles: a batched product may sum in another order.
        products = [a @ b.T for a, b in zip(left.expand(len(right), -1, -1), right, strict=True)]
        return torch.stack(products).add_(row)


def factored_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    row: Tensor,
    tau: float = 1.0,
    noise: Callable[[int], Tensor] | Sequence[int] | None = None,
) -> Tensor:
    """Apply a linear layer under masks 1[S >= log log 2] of logits S = left @ right^T + row, per sample.

    Args:
        x: inputs (B, ..., I).
        weight: (O, I), frozen or not.
        bias: (O,) or None.
        left: (M, O, r) where M divides B, row b of the batch takes factor b mod M; or (O, r) for all.
        right: (I, r) for all, or (M, I, r).
        row: (I,), added to every row.
        tau: temperature of the straight-through gradient, > 0.
        noise: seeds of Gumbel noise g, sample b takes seed b mod their number; or a function from b to its noise (O, I).
            A weight is then kept where S + g > 0.

    Returns:
        Outputs (B, ..., O).

    Raises:
        ValueError: shapes do not fit each other.
    """
    left, right, row = at_least_single(left), at_least_single(right), at_least_single(row)
    left = _checked_left(left, right, row, tuple(weight.shape))
    rows = len(x) if x.ndim > 1 else 1
    check_mask_count(len(left), rows)
    is_trained = torch.is_grad_enabled() and any(t.requires_grad for t in (left, right, row))
    name = _implementation(x, weight, bias, len(left) if noise is None else rows, is_trained)
    rank = left.shape[-1]
    if name != "reference" and (rank > CHEAP_RANK or right.ndim == 3):
        # Logits of a high rank are computed once and kept for the backward pass. The kernels take one right factor.
        name = "reference" if rank > CHEAP_RANK and is_trained else "tiled"
    if name == "triton" and not callable(noise):
        seed = None if noise is None else torch.tensor(noise, device=x.device)
        return triton_factored_linear(x, weight, bias, left, right, row, tau, seed)
    if noise is not None and not callable(noise):
        noise = _noise_by_row(noise, tuple(weight.shape), x.device)
    if name != "reference":
        return tiled_factored_linear(x, weight, bias, left, right, row, tau, noise)
    logits = factored_logits(left, right, row)
    noises = None if noise is None else torch.stack([noise(b) for b in range(rows)])
    if noises is not None:
        logits = logits.repeat(rows // len(logits), 1, 1)
    if not is_trained and not (torch.is_grad_enabled() and weight.requires_grad):
        scores = logits if noises is None else logits.add_(noises)
        return linear_by_sample(x, hard_masked_weights(weight, scores, noises is not None), bias)
    masks = threshold(logits, tau) if noises is None else gumbel_sigmoid(logits, noises, tau)
    return masked_linear(x, weight, bias, masks)


def _checked_left(left: Tensor, right: Tensor, row: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
    """Return the left factor as (M, O, r), or refuse factors that do not fit the weight."""
    outputs, inputs = weight_shape
    shapes = (tuple(left.shape), tuple(right.shape), tuple(row.shape))
    if left.ndim == 2:
        left = left.expand(len(right) if right.ndim == 3 else 1, -1, -1)
    rank = left.shape[-1]
    right_shape = (len(left), inputs, rank) if right.ndim == 3 else (inputs, rank)
    if left.ndim != 3 or (left.shape[1], *shapes[1:]) != (outputs, right_shape, (inputs,)):
        raise ValueError(
            f"expected factors (M, {outputs}, r), ({inputs}, r) or (M, {inputs}, r), and ({inputs},) for a weight "
            f"{weight_shape}, got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    return left


def _implementation(x: Tensor, weight: Tensor, bias: Tensor | None, num_masks: int, is_trained: bool = False) -> str:
    """The chosen implementation; only the reference computes gradients of the layer itself."""
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        return "reference"
    return choose_implementation(x, weight, num_masks, is_trained)


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, num_masks: int = 1) -> Tensor:
    """Apply a linear layer under masks at one bit per weight.

    Args:
        x: inputs (B, ..., I).
        weight: (O, I).
        bias: (O,) or None.
        packed: masks (M, O, I), packed by `pack_bits`; 1 keeps a weight.
        num_masks: M, a divisor of B: row b of the batch takes mask b mod M.

    Returns:
        Outputs (B, ..., O).

    Raises:
        ValueError: `packed` holds another number of bits, or M does not divide B.
    """
    if num_masks > 1:
        check_mask_count(num_masks, len(x) if x.ndim > 1 else 1)
    name = _implementation(x, weight, bias, num_masks)
    if name == "triton" and weight.shape[1] % 8 == 0:
        return triton_packed_linear(x, weight, bias, packed, num_masks)
    if name != "reference" and weight.numel() % 8 == 0:
        return tiled_packed_linear(x, weight, bias, packed, num_masks)
    shape = (num_masks, *weight.shape)
    if torch.is_grad_enabled() and weight.requires_grad:
        return masked_linear(x, weight, bias, unpack_bits(packed, shape))
    return linear_by_sample(x, unpack_bits(packed, shape, weight.dtype).mul_(weight), bias)
