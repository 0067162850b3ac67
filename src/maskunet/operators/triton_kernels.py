"""Triton kernels of masked linear layers; `triton_launch` imports them on first use, since they need Triton.

A tile of the mask is computed where the product needs it, from the factors of its logits or from packed bits, and is
never stored. Letters: O outputs, I inputs, N tokens per sample, B samples, r the rank. Factors are contiguous float32.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806, SIM108 - compile-time constants are capitals, and branches on them are statements
from __future__ import annotations

import triton
import triton.language as tl

from ..relaxation import THRESHOLD

_LIMIT = tl.constexpr(THRESHOLD)


@triton.jit
def _multiply(a, b, total, WIDE: tl.constexpr):
    """Return total + a @ b in float32; WIDE in the interpreter, which would multiply the bit patterns of bfloat16."""
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _gumbel(seed, o, i, inputs):
    """Return Gumbel(0, 1) noise (O tile, I tile) from the seed and the weight's index alone."""
    uniform = tl.rand(seed, o[:, None] * inputs + i[None, :])
    # Clamped to the least normal number: log 0 is undefined.
    return -tl.log(-tl.log(tl.maximum(uniform, 1.1754943508222875e-38)))


@triton.jit
def _scores(
    left,
    right,
    row,
    seeds,
    group,
    masks,
    draws,
    o,
    i,
    outputs,
    inputs,
    RANK: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Return a tile of S - THRESHOLD, or of S + noise, in float32 for every dtype of the product."""
    left += (group % masks).to(tl.int64) * outputs * RANK
    logits = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for start in tl.static_range(0, RANK, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        a = tl.load(left + o[:, None] * RANK + r[None, :], (o[:, None] < outputs) & (r[None, :] < RANK), 0.0)
        b = tl.load(right + i[None, :] * RANK + r[:, None], (i[None, :] < inputs) & (r[:, None] < RANK), 0.0)
        # Not in tf32: rounding a logit across the threshold would flip its mask.
        logits = tl.dot(a, b, logits, input_precision="ieee")
    logits += tl.load(row + i, i < inputs, 0.0)[None, :]
    if NOISE:
        return logits + _gumbel(tl.load(seeds + group % draws), o, i, inputs)
    else:
        return logits - _LIMIT


@triton.jit
def product(
    a,
    weight,
    bias,
    left,
    right,
    row,
    seeds,
    packed,
    out,
    tokens,
    outputs,
    inputs,
    masks,
    draws,
    stride_ab,
    stride_an,
    stride_ak,
    stride_wo,
    stride_wi,
    RANK: tl.constexpr,
    NOISE: tl.constexpr,
    PACKED: tl.constexpr,
    BIASED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Out_b = a_b (W * m_b)^T + bias (N, O); TRANSPOSED: out_b = a_b (W * m_b) (N, I), for the gradient to x.

    One program per tile of tokens, tile of `out`'s columns and sample; it loops over the other side of W.
    """
    sample = tl.program_id(2)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # a shared mask can have many tokens
    if TRANSPOSED:
        columns = inputs
        depth = outputs
        BLOCK_C: tl.constexpr = BLOCK_I
        BLOCK_K: tl.constexpr = BLOCK_O
    else:
        columns = outputs
        depth = inputs
        BLOCK_C: tl.constexpr = BLOCK_O
        BLOCK_K: tl.constexpr = BLOCK_I
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    a += sample.to(tl.int64) * stride_ab
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if TRANSPOSED:
            o = k
            i = c
        else:
            o = c
            i = k
        inside = (o[:, None] < outputs) & (i[None, :] < inputs)
        if PACKED:  # eight weights of a row per byte, the first in the highest bit
            rows = (sample % masks).to(tl.int64) * outputs + o
            bits = tl.load(packed + rows[:, None] * (inputs // 8) + (i // 8)[None, :], inside, 0).to(tl.int32)
            keep = ((bits >> (7 - i % 8)[None, :]) & 1) != 0
        else:
            scores = _scores(
                left,
                right,
                row,
                seeds,
                sample,
                masks,
                draws,
                o,
                i,
                outputs,
                inputs,
                RANK,
                NOISE,
                BLOCK_O,
                BLOCK_I,
                BLOCK_R,
            )
            if NOISE:
                keep = scores > 0
            else:
                keep = scores >= 0
        # The full tile is read, so that the load need not wait for the mask.
        w = tl.load(weight + o[:, None] * stride_wo + i[None, :] * stride_wi, inside, 0.0)
        # A product, not tl.where, which Triton 3.9 fails to compile for some strides (it moves `keep` by single bits).
        if WIDE:
            w = w.to(tl.float32)
        w *= keep.to(w.dtype)
        values = tl.load(
            a + n[:, None] * stride_an + k[None, :] * stride_ak, (n[:, None] < tokens) & (k[None, :] < depth), 0.0
        )
        if TRANSPOSED:
            total = _multiply(values, w, total, WIDE)
        else:
            total = _multiply(values, tl.trans(w), total, WIDE)
    if BIASED:
        total += tl.load(bias + c, c < columns, 0.0).to(tl.float32)[None, :]
    out += sample.to(tl.int64) * tokens * columns
    tl.store(
        out + n[:, None] * columns + c[None, :],
        total.to(out.dtype.element_ty),
        (n[:, None] < tokens) & (c[None, :] < columns),
    )


@triton.jit
def _add(pointers, values, inside, ATOMIC: tl.constexpr):
    if ATOMIC:
        tl.atomic_add(pointers, values, inside, sem="relaxed")
    else:
        tl.store(pointers, values, inside)


@triton.jit
def factor_gradients(
    x,
    grad,
    weight,
    left,
    right,
    row,
    seeds,
    grad_left,
    grad_right,
    grad_row,
    samples,
    tokens,
    outputs,
    inputs,
    masks,
    draws,
    groups,
    tau,
    stride_xb,
    stride_xn,
    stride_xi,
    stride_gb,
    stride_gn,
    stride_go,
    stride_wo,
    stride_wi,
    RANK: tl.constexpr,
    NOISE: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROW: tl.constexpr,
    ATOMIC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Straight-through gradients to the factors; G = (grad^T x) * W * sigmoid'(scores / tau) / tau is never stored.

    One program per tile of W and group of samples under one mask (sample b is in group b mod groups). It adds to
    gradients (1, M, O, r), (1, I, r) and (1, I) if ATOMIC, else it fills its own slot of
    (I tiles * groups / M, M, O, r), (O tiles * groups, I, r) and (O tiles * groups, I).
    """
    group = tl.program_id(2)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    total = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for sample in range(group, samples, groups):
        x_rows = x + tl.cast(sample, tl.int64) * stride_xb
        grad_rows = grad + tl.cast(sample, tl.int64) * stride_gb
        for start in range(0, tokens, BLOCK_N):
            n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
            dy = tl.load(
                grad_rows + o[:, None] * stride_go + n[None, :] * stride_gn,
                (o[:, None] < outputs) & (n[None, :] < tokens),
                0.0,
            )
            values = tl.load(
                x_rows + n[:, None] * stride_xn + i[None, :] * stride_xi,
                (n[:, None] < tokens) & (i[None, :] < inputs),
                0.0,
            )
            total = _multiply(dy, values, total, WIDE)
    inside = (o[:, None] < outputs) & (i[None, :] < inputs)
    w = tl.load(weight + o[:, None] * stride_wo + i[None, :] * stride_wi, inside, 0.0).to(tl.float32)
    scores = _scores(
        left, right, row, seeds, group, masks, draws, o, i, outputs, inputs, RANK, NOISE, BLOCK_O, BLOCK_I, BLOCK_R
    )
    soft = tl.sigmoid(scores / tau)
    total *= w * soft * (1 - soft) / tau

    of_mask = (group % masks).to(tl.int64) * outputs * RANK
    slot = (tl.program_id(0) * groups + group).to(tl.int64)
    if not ATOMIC:
        if LEFT:
            grad_left += (tl.program_id(1) * (groups // masks) + group // masks).to(tl.int64) * masks * outputs * RANK
        if RIGHT:
            grad_right += slot * inputs * RANK
        if ROW:
            grad_row += slot * inputs
    if ROW:
        _add(grad_row + i, tl.sum(total, 0), i < inputs, ATOMIC)
    for start in tl.static_range(0, RANK, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        of_left = o[:, None] * RANK + r[None, :]
        of_right = i[:, None] * RANK + r[None, :]
        left_inside = (o[:, None] < outputs) & (r[None, :] < RANK)
        right_inside = (i[:, None] < inputs) & (r[None, :] < RANK)
        if LEFT:
            b = tl.load(right + of_right, right_inside, 0.0)
            _add(grad_left + of_mask + of_left, tl.dot(total, b, input_precision="ieee"), left_inside, ATOMIC)
        if RIGHT:
            a = tl.load(left + of_mask + of_left, left_inside, 0.0)
            change = tl.dot(tl.trans(total), a, input_precision="ieee")
            _add(grad_right + of_right, change, right_inside, ATOMIC)


@triton.jit
def gumbel(seeds, out, outputs, inputs, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr):
    """Write the noise of D seeds, (D, O, I)."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    draw = tl.program_id(2)
    noise = _gumbel(tl.load(seeds + draw), o, i, inputs)
    out += draw.to(tl.int64) * outputs * inputs
    tl.store(out + o[:, None] * inputs + i[None, :], noise, (o[:, None] < outputs) & (i[None, :] < inputs))
