r"""Masked linear layers, sample by sample and tile by tile: no mask outlives its layer, and few leave the cache.

For rows T of the weight and sample b the tile :math:`W_T \odot 1[L_{b,T} R^T + 1 r^T \ge \log\log 2]` is made in
place in one buffer, from which the product is taken. Its masks are the reference's bit for bit: sums run in the same
order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..relaxation import THRESHOLD, keeps
from .packing import unpack_bits

#: Bytes of a tile: 2 MiB measured better than 0.5 MiB, whose many small steps cost more than the cache saves.
TILE_BYTES = 1 << 21
#: Products of fewer rows take other kernels, whose sums run in another order.
LEAST_ROWS = 16
#: Up to this rank logits are made again in the backward pass; above, training takes the reference, which keeps them.
CHEAP_RANK = 64

Noise = Callable[[int], Tensor]


def _tiles(outputs: int, inputs: int, device: torch.device) -> list[slice]:
    """Return slices of about equal numbers of rows."""
    count = 1
    if device.type == "cpu":
        count = max(1, min(outputs // LEAST_ROWS, -(-outputs * inputs * 4 // TILE_BYTES)))
    bounds = [outputs * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _scores(out: Tensor, left: Tensor, right: Tensor, row: Tensor) -> Tensor:
    return torch.mm(left, right.T, out=out).add_(row)


def _of(right: Tensor, s: int) -> Tensor:
    return right if right.ndim == 2 else right[s]


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
        training: bool,
    ) -> Tensor:
        sets, (outputs, inputs) = len(left), weight.shape
        kept: list[Tensor] = []
        drawn_once = training and noise is not None  # noise is dearer to draw again than to keep
        masked = torch.empty_like(weight, memory_format=torch.contiguous_format)
        out = x.new_empty(*x.shape[:-1], outputs)
        order = range(len(x)) if noise is not None else [b for s in range(sets) for b in range(s, len(x), sets)]
        ready = -1
        for b in order:
            if noise is not None or ready != b % sets:  # without noise rows of one set share their masks
                drawn = None if noise is None else noise(b)
                scores = row.new_empty(outputs, inputs) if drawn_once else None
                for tile in _tiles(outputs, inputs, x.device):
                    place = masked[tile]
                    if scores is not None:
                        buffer = scores[tile]
                    else:
                        buffer = place if place.dtype == row.dtype else torch.empty_like(place, dtype=row.dtype)
                    _scores(buffer, left[b % sets, tile], _of(right, b % sets), row)
                    if drawn is not None:
                        buffer += drawn[tile]
                    keeps(buffer, drawn is not None, out=place).mul_(weight[tile])
                if scores is not None:
                    kept.append(scores)
                ready = b % sets
            out[b] = F.linear(x[b], masked, bias)
        ctx.save_for_backward(x, weight, left, right, row, *kept)
        ctx.tau, ctx.noisy = tau, noise is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, left, right, row, *kept = ctx.saved_tensors
        grad, sets, (outputs, inputs) = grads[0], len(left), weight.shape
        wants_x, factors = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:6])
        grad_x = torch.empty_like(x) if wants_x else None
        grad_left, grad_right, grad_row = (torch.zeros_like(t) if factors else None for t in (left, right, row))
        scores = row.new_empty(outputs, inputs)
        for b in range(len(x)):
            s = b % sets
            if kept:
                scores = kept[b]
            else:
                _scores(scores, left[s], _of(right, s), row)
            if grad_x is not None:
                masked = keeps(scores, ctx.noisy, out=torch.empty_like(scores, dtype=weight.dtype)).mul_(weight)
                torch.matmul(grad[b], masked, out=grad_x[b])
            if factors:
                slope = _slope(scores, ctx.noisy, ctx.tau)
                slope *= (grad[b].reshape(-1, outputs).T @ x[b].reshape(-1, inputs)).mul_(weight)
                grad_left[s] += slope @ _of(right, s)  # type: ignore[index]
                _of(grad_right, s).addmm_(slope.T, left[s])  # type: ignore[arg-type]
                grad_row += slope.sum(0)  # type: ignore[operator]
        return grad_x, None, None, grad_left, grad_right, grad_row, None, None, None


def _slope(scores: Tensor, noisy: bool, tau: float) -> Tensor:
    """Derivative of the soft mask in its logits."""
    shifted = scores if noisy else scores - THRESHOLD
    soft = torch.sigmoid(shifted if tau == 1 else shifted / tau)
    return torch.ops.aten.sigmoid_backward(torch.full_like(soft, 1 / tau), soft)  # type: ignore[no-any-return]


def factored_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    row: Tensor,
    tau: float = 1.0,
    noise: Noise | None = None,
) -> Tensor:
    """Apply a linear layer under masks from factors; see `operators.factored_linear`, which chooses this."""
    tensors = (x, left, right, row)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    flat = x.reshape(len(x), -1, x.shape[-1]) if x.ndim > 1 else x[None, None]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        flat, weight, bias = flat.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _FactoredLinear.apply(flat, weight, bias, left, right, row, tau, noise, training)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, sets: int) -> Tensor:
    """Apply a linear layer under packed masks; see `operators.packed_linear`, which chooses this."""
    size, outs = weight.numel() // 8, []
    for s in range(sets):
        masked = unpack_bits(packed[s * size : (s + 1) * size], tuple(weight.shape), weight.dtype).mul_(weight)
        outs.append(F.linear(x[s::sets], masked, bias))
    # Row r of the batch is row r // sets of set r mod sets.
    return outs[0] if sets == 1 else torch.stack(outs, 1).flatten(0, 1)
