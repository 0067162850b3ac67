r"""Linear layers under masks that are never held whole: from the factors of their logits, or from packed bits.

What runs is chosen by device and size (`choice`), and is the reference in other words: the same masks, and outputs
within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..relaxation import gumbel_noise, gumbel_sigmoid, threshold
from . import tiled as tiles
from . import triton_linear as fused_gpu
from .implementation import choose
from .packing import unpack_bits
from .reference import keep_weights, linear_by_sample, masked_linear


def _check_sets(sets: int, rows: int) -> None:
    if sets == 0 or rows % sets:
        raise ValueError(
            f"expected a batch that is a multiple of the {sets} masks given, got {rows} samples; "
            "give one mask for all samples or one for each"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def layer_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Return Gumbel noise of a layer's weight shape: the kernels' where they run, so that all ways draw the same."""
    if fused_gpu.available(device):
        size = (shape[0], math.prod(shape[1:]))
        return fused_gpu.kernel_noise(torch.tensor([seed], device=device), size).reshape(shape)
    return gumbel_noise(shape, seed, device=device)


def _noise_of(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Callable[[int], Tensor]:
    if len(seeds) == 1:
        shared = layer_noise(shape, seeds[0], device)
        return lambda row: shared
    return lambda row: layer_noise(shape, seeds[row % len(seeds)], device)


def at_least_single(factor: Tensor) -> Tensor:
    """Return a factor of logits in single precision at least, as the kernels read it: masks depend on nothing else."""
    return factor.float() if factor.dtype in (torch.float16, torch.bfloat16) else factor


def factored_logits(left: Tensor, right: Tensor, row: Tensor) -> Tensor:
    """Return logits S = left @ right^T + row, (M, O, I), in single precision at least, under autocast as well.

    Args:
        left: (M, O, r), or (O, r) for all.
        right: (I, r) for all, or (M, I, r); or of kernels, (M, kh, kw, I, r), which gives (M, kh, kw, O, I).
        row: (I,), added to every row.
    """
    left, right, row = at_least_single(left), at_least_single(right), at_least_single(row)
    with torch.autocast(left.device.type, enabled=False):
        if right.ndim != 3:
            return (left @ right.mT).add_(row)
        # One product a sample, as the tiles take them: a batched one may add in another order.
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
        left: (M, O, r) where M divides B: row b of the batch takes set b mod M; or (O, r) for all.
        right: (I, r) for all, or (M, I, r).
        row: (I,), added to every row.
        tau: temperature of the straight-through gradient.
        noise: seeds of Gumbel noise g, sample b takes seed b mod their number; or what gives sample b its noise (O, I).
            A weight is then kept where S + g > 0.

    Returns:
        Outputs (B, ..., O).

    Raises:
        ValueError: shapes do not fit each other.
    """
    left, right, row = at_least_single(left), at_least_single(right), at_least_single(row)
    outputs, inputs = weight.shape
    given = (tuple(left.shape), tuple(right.shape), tuple(row.shape))
    if left.ndim == 2:
        left = left.expand(len(right) if right.ndim == 3 else 1, -1, -1)
    rank, sets = left.shape[-1], [len(left)] if right.ndim == 3 else []
    if (
        left.ndim != 3
        or [*left.shape[1:], *right.shape] != [outputs, rank, *sets, inputs, rank]
        or given[2] != (inputs,)
    ):
        raise ValueError(
            f"expected factors (M, {outputs}, r), ({inputs}, r) or (M, {inputs}, r), and ({inputs},) for a weight "
            f"{tuple(weight.shape)}, got {given[0]}, {given[1]} and {given[2]}"
        )
    rows = len(x) if x.ndim > 1 else 1
    _check_sets(len(left), rows)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (left, right, row))
    name = "reference" if _trains(weight, bias) else choose(x, weight, len(left) if noise is None else rows, learns)
    if (rank > tiles.CHEAP_RANK or right.ndim == 3) and name != "reference":
        # Logits that are dear to make again are made once: kept for the backward pass, not made for each tile of tokens.
        # The kernels know a right factor that all samples share.
        keeps = rank > tiles.CHEAP_RANK and learns
        name = "reference" if keeps else "tiled"
    if name == "triton" and not callable(noise):
        seed = None if noise is None else torch.tensor(noise, device=x.device)
        return fused_gpu.factored_linear(x, weight, bias, left, right, row, tau, seed)
    if noise is not None and not callable(noise):
        noise = _noise_of(noise, tuple(weight.shape), x.device)
    if name != "reference":
        return tiles.factored_linear(x, weight, bias, left, right, row, tau, noise)
    logits = factored_logits(left, right, row)
    drawn = None if noise is None else torch.stack([noise(b) for b in range(rows)])
    if drawn is not None:
        logits = logits.repeat(rows // len(logits), 1, 1)
    if not learns and not (torch.is_grad_enabled() and weight.requires_grad):
        scores = logits if drawn is None else logits.add_(drawn)
        return linear_by_sample(x, keep_weights(weight, scores, drawn is not None), bias)
    masks = threshold(logits, tau) if drawn is None else gumbel_sigmoid(logits, drawn, tau)
    return masked_linear(x, weight, bias, masks)


def _trains(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the layer itself wants gradients, which only the reference gives."""
    return torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, sets: int = 1) -> Tensor:
    """Apply a linear layer under masks of one bit a weight.

    Args:
        x: inputs (B, ..., I).
        weight: (O, I).
        bias: (O,) or None.
        packed: masks (M, O, I) as `pack_bits` packs them; 1 keeps a weight.
        sets: M, a divisor of B: row b of the batch takes set b mod M.

    Returns:
        Outputs (B, ..., O).

    Raises:
        ValueError: `packed` holds another number of bits, or M does not divide B.
    """
    if sets > 1:
        _check_sets(sets, len(x) if x.ndim > 1 else 1)
    name = "reference" if _trains(weight, bias) else choose(x, weight, sets)
    if name == "triton" and weight.shape[1] % 8 == 0:
        return fused_gpu.packed_linear(x, weight, bias, packed, sets)
    if name != "reference" and weight.numel() % 8 == 0:
        expected = sets * weight.numel() // 8
        if packed.dtype != torch.uint8 or packed.numel() != expected:
            raise ValueError(f"expected {expected} bytes (uint8) of masks, got {packed.numel()} of {packed.dtype}")
        return tiles.packed_linear(x, weight, bias, packed, sets)
    shape = (sets, *weight.shape)
    if torch.is_grad_enabled() and weight.requires_grad:
        return masked_linear(x, weight, bias, unpack_bits(packed, shape))
    return linear_by_sample(x, unpack_bits(packed, shape, weight.dtype).mul_(weight), bias)
