r"""Masked layers, per sample: :math:`y_b = (W \odot m_b) x_b + \text{bias}`.

The weight is read and never written. A mask of the weight's own shape is shared by the batch; one with a leading batch
dimension holds a mask for each sample. A batch that is a multiple of the masks' repeats them in order (row r takes
mask r mod M), as classifier-free guidance stacks its halves.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _masks_for(mask: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Return masks (1 or rows, *weight.shape) from a shared or per-sample mask, or raise."""
    if mask.shape == weight.shape:
        return mask[None]
    if mask.shape[1:] != weight.shape or mask.ndim != weight.ndim + 1:
        raise ValueError(
            f"expected a mask of the weight's shape {tuple(weight.shape)}, with or without a leading batch dimension, "
            f"got {tuple(mask.shape)}"
        )
    count = mask.shape[0]
    if count in (1, rows):
        return mask
    if count == 0 or rows % count:
        raise ValueError(
            f"expected a batch that is a multiple of the {count} masks given, got {rows} samples; "
            "give one mask for all samples or one for each"
        )
    return mask.repeat(rows // count, *[1] * weight.ndim)


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """Apply a linear layer with masked weights.

    Args:
        x: inputs (..., I); with per-sample masks the first dimension is the batch, (B, ..., I).
        weight: (O, I).
        bias: (O,) or None.
        mask: (O, I), or (M, O, I) where M divides B; 1 keeps a weight, 0 switches it off.

    Returns:
        Outputs (..., O).

    Raises:
        ValueError: the mask fits neither the weight nor the batch.
    """
    if mask.shape == weight.shape or (mask.ndim == 3 and mask.shape[0] == 1 and mask.shape[1:] == weight.shape):
        return F.linear(x, weight * mask.reshape(weight.shape).to(weight.dtype), bias)
    masks = _masks_for(mask, weight, x.shape[0] if x.ndim > 1 else 1)
    weights = (weight * masks.to(weight.dtype)).transpose(1, 2)
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    out = torch.bmm(rows, weights) if bias is None else torch.baddbmm(bias, rows, weights)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Apply a 2-d convolution with masked weights.

    Args:
        x: inputs (B, I, H, W), or (I, H, W) with a shared mask.
        weight: (O, I / groups, kh, kw).
        bias: (O,) or None.
        mask: the weight's shape, or (M, O, I / groups, kh, kw) where M divides B.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`.

    Returns:
        Outputs (B, O, H', W').

    Raises:
        ValueError: the mask fits neither the weight nor the batch.
    """
    if mask.shape == weight.shape or (mask.ndim == 5 and mask.shape[0] == 1 and mask.shape[1:] == weight.shape):
        kept = weight * mask.reshape(weight.shape).to(weight.dtype)
        return F.conv2d(x, kept, bias, stride, padding, dilation, groups)
    batch = x.shape[0] if x.ndim == 4 else 1
    masks = _masks_for(mask, weight, batch)
    # One grouped convolution does all samples: the batch becomes groups.
    weights = (weight * masks.to(weight.dtype)).flatten(0, 1)
    folded = x.reshape(1, -1, *x.shape[-2:])
    out = F.conv2d(folded, weights, None, stride, padding, dilation, groups * batch)
    out = out.reshape(batch, weight.shape[0], *out.shape[-2:])
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]
