r"""Masked linear layers, sample by sample and tile by tile: no mask outlives its layer, and few leave the cache.

For rows T of the weight and sample b the tile :math:`W_T \odot 1[L_{b,T} R^T + 1 r^T \ge \log\log 2]` is computed in
place in one buffer, which then multiplies the input. Its masks equal the reference's bit for bit: sums run in the same
order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..relaxation import THRESHOLD, hard_mask
from .packing import unpack_bits

#: Bytes of a tile. 2 MiB measured faster than 0.5 MiB, whose many small steps cost more than the cache saves.
TILE_BYTES = 1 << 21
#: Products of fewer rows take other kernels, whose sums run in another order.
LEAST_ROWS = 16
#: Up to this rank logits are recomputed in the backward pass; above it, training takes the reference, which keeps them.
CHEAP_RANK = 64

Noise = Callable[[int], Tensor]


def _tiles(outputs: int, inputs: int, device: torch.device) -> list[slice]:
    """Return slices of about equal numbers of rows."""
    count = 1
    if device.type == "cpu":
        count = max(1, min(outputs // LEAST_ROWS, -(-outputs * inputs * 4 // TILE_BYTES)))
    bounds = [outputs * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _write_logits(out: Tensor, left: Tensor, right: Tensor, row: Tensor) -> Tensor:
    return torch.mm(left, right.T, out=out).add_(row)


def _right_of(right: Tensor, mask: int) -> Tensor:
    return right if right.ndim == 2 else right[mask]


class _FactoredLinear(torch.autograd.Function):
    """y_b = (W * m_b) x_b + bias with masks from factors; gradients to x, left, right and row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        left: Tensor,
        right: Tensor,
        row: Tensor,
        tau: float,
        noise: Noise | None,
        needs_grad: bool,
    ) -> Tensor:
        count, (outputs, inputs) = len(left), weight.shape
        saved_scores: list[Tensor] = []
        saves_scores = needs_grad and noise is not None  # to draw noise again costs more than to keep it
        masked = torch.empty_like(weight, memory_format=torch.contiguous_format)
        out = x.new_empty(*x.shape[:-1], outputs)
        order = range(len(x)) if noise is not None else [b for m in range(count) for b in range(m, len(x), count)]
        current = -1
        for b in order:
            if noise is not None or current != b % count:  # without noise, rows of one mask share it
                sample_noise = None if noise is None else noise(b)
                scores = row.new_empty(outputs, inputs) if saves_scores else None
                for tile in _tiles(outputs, inputs, x.device):
                    target = masked[tile]
                    if scores is not None:
                        buffer = scores[tile]
                    else:
                        buffer = target if target.dtype == row.dtype else torch.empty_like(target, dtype=row.dtype)
                    _write_logits(buffer, left[b % count, tile], _right_of(right, b % count), row)
                    if sample_noise is not None:
                        buffer += sample_noise[tile]
                    hard_mask(buffer, sample_noise is not None, out=target).mul_(weight[tile])
                if scores is not None:
                    saved_scores.append(scores)
                current = b % count
            out[b] = F.linear(x[b], masked, bias)
        ctx.save_for_backward(x, weight, left, right, row, *saved_scores)
        ctx.tau, ctx.is_noisy = tau, noise is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, left, right, row, *saved_scores = ctx.saved_tensors
        grad, count, (outputs, inputs) = grads[0], len(left), weight.shape
        needs_x, needs_factors = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:6])
        grad_x = torch.empty_like(x) if needs_x else None
        grad_left, grad_right, grad_row = (torch.zeros_like(t) if needs_factors else None for t in (left, right, row))
        scores = row.new_empty(outputs, inputs)
        for b in range(len(x)):
            m = b % count
            if saved_scores:
                scores = saved_scores[b]
            else:
                _write_logits(scores, left[m], _right_of(right, m), row)
            if grad_x is not None:
                out = torch.empty_like(scores, dtype=weight.dtype)
                torch.matmul(grad[b], hard_mask(scores, ctx.is_noisy, out=out).mul_(weight), out=grad_x[b])
            if needs_factors:
                slope = _slope(scores, ctx.is_noisy, ctx.tau)
                slope *= (grad[b].reshape(-1, outputs).T @ x[b].reshape(-1, inputs)).mul_(weight)
                grad_left[m] += slope @ _right_of(right, m)  # type: ignore[index]
                _right_of(grad_right, m).addmm_(slope.T, left[m])  # type: ignore[arg-type]
                grad_row += slope.sum(0)  # type: ignore[operator]
        return grad_x, None, None, grad_left, grad_right, grad_row, None, None, None


def _slope(scores: Tensor, is_noisy: bool, tau: float) -> Tensor:
    """Derivative of the soft mask in its logits."""
    shifted = scores if is_noisy else scores - THRESHOLD
    soft = torch.sigmoid(shifted if tau == 1 else shifted / tau)
    return torch.ops.aten.sigmoid_backward(torch.full_like(soft, 1 / tau), soft)  # type: ignore[no-any-return]


def tiled_factored_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    row: Tensor,
    tau: float = 1.0,
    noise: Noise | None = None,
) -> Tensor:
    """Apply a linear layer under masks from factors, tile by tile; see `operators.factored_linear`.

    Args:
        x: inputs (B, ..., I).
        weight: (O, I), frozen.
        bias: (O,), frozen, or None.
        left: (M, O, r) where M divides B.
        right: (I, r) or (M, I, r).
        row: (I,).
        tau: temperature of the straight-through gradient, > 0.
        noise: function from the row b to its Gumbel noise (O, I), or None.

    Returns:
        Outputs (B, ..., O).
    """
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, left, right, row))
    flat = x.reshape(len(x), -1, x.shape[-1]) if x.ndim > 1 else x[None, None]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        flat, weight, bias = flat.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _FactoredLinear.apply(flat, weight, bias, left, right, row, tau, noise, needs_grad)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def tiled_packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, num_masks: int) -> Tensor:
    """Apply a linear layer under packed masks, one mask at a time; see `operators.packed_linear`.

    Args:
        x: inputs (B, ..., I).
        weight: (O, I), of a multiple of 8 weights.
        bias: (O,) or None.
        packed: masks (M, O, I), packed by `pack_bits`.
        num_masks: M, a divisor of B.

    Returns:
        Outputs (B, ..., O).

    Raises:
        ValueError: `packed` holds another number of bytes.
    """
    size = weight.numel() // 8
    if packed.dtype != torch.uint8 or packed.numel() != num_masks * size:
        raise ValueError(f"expected {num_masks * size} bytes (uint8) of masks, got {packed.numel()} of {packed.dtype}")
    outputs = []
    for m in range(num_masks):
        masked = unpack_bits(packed[m * size : (m + 1) * size], tuple(weight.shape), weight.dtype).mul_(weight)
        outputs.append(F.linear(x[m::num_masks], masked, bias))
    # Row b of the batch is row b // M of mask b mod M.
    return outputs[0] if num_masks == 1 else torch.stack(outputs, 1).flatten(0, 1)
