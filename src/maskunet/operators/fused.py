r"""Linear layers under masks that are never held whole: from the factors of their logits, or from packed bits.

What runs is chosen by device and size (`choice`), and is the reference in other words: the same masks, and outputs
within rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..relaxation import gumbel_sigmoid, threshold
from . import tiles
from .choice import choose
from .masked import masked_linear
from .packing import unpack_bits


def _check_sets(sets: int, rows: int) -> None:
    if sets == 0 or rows % sets:
        raise ValueError(
            f"expected a batch that is a multiple of the {sets} masks given, got {rows} samples; "
            "give one mask for all samples or one for each"
        )


def factored_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    row: Tensor,
    tau: float = 1.0,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Apply a linear layer under masks 1[S >= log log 2] of logits S = left @ right^T + row, per sample.

    Args:
        x: inputs (B, ..., I).
        weight: (O, I), frozen or not.
        bias: (O,) or None.
        left: (M, O, r) where M divides B: row b of the batch takes set b mod M.
        right: (I, r).
        row: (I,), added to every row.
        tau: temperature of the straight-through gradient.
        noise: gives sample b its Gumbel noise g, (O, I); a weight is then kept where S + g > 0. It is called once for
            each sample.

    Returns:
        Outputs (B, ..., O).

    Raises:
        ValueError: shapes do not fit each other.
    """
    outputs, inputs = weight.shape
    shapes = (tuple(left.shape[1:]), tuple(right.shape), tuple(row.shape))
    rank = left.shape[-1]
    if left.ndim != 3 or shapes != ((outputs, rank), (inputs, rank), (inputs,)):
        raise ValueError(
            f"expected factors (M, {outputs}, r), ({inputs}, r) and ({inputs},) for a weight {tuple(weight.shape)}, got "
            f"{tuple(left.shape)}, {tuple(right.shape)} and {tuple(row.shape)}"
        )
    rows = len(x) if x.ndim > 1 else 1
    _check_sets(len(left), rows)
    trains_base = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    name = "reference" if trains_base else choose(x, weight.numel() * (len(left) if noise is None else rows))
    if name == "tiled":
        return tiles.factored_linear(x, weight, bias, left, right, row, tau, noise)
    logits = left @ right.T + row
    if noise is None:
        return masked_linear(x, weight, bias, threshold(logits, tau))
    drawn = torch.stack([noise(b) for b in range(rows)])
    logits = logits.repeat(rows // len(logits), 1, 1)
    return masked_linear(x, weight, bias, gumbel_sigmoid(logits, drawn, tau))


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
    if weight.numel() % 8 == 0 and choose(x, weight.numel() * sets) == "tiled":
        expected = sets * weight.numel() // 8
        if packed.dtype != torch.uint8 or packed.numel() != expected:
            raise ValueError(f"expected {expected} bytes (uint8) of masks, got {packed.numel()} of {packed.dtype}")
        return tiles.packed_linear(x, weight, bias, packed, sets)
    shape = tuple(weight.shape)
    return masked_linear(x, weight, bias, unpack_bits(packed, shape if sets == 1 else (sets, *shape)))
