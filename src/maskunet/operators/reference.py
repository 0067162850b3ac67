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

from ..relaxation import keeps


def _masks_for(mask: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Return masks (M, *weight.shape) from a shared or per-sample mask, where M divides the rows, or raise."""
    if mask.shape == weight.shape:
        return mask[None]
    if mask.shape[1:] != weight.shape or mask.ndim != weight.ndim + 1:
        raise ValueError(
            f"expected a mask of the weight's shape {tuple(weight.shape)}, with or without a leading batch dimension, "
            f"got {tuple(mask.shape)}"
        )
    count = mask.shape[0]
    if count not in (1, rows) and (count == 0 or rows % count):
        raise ValueError(
            f"expected a batch that is a multiple of the {count} masks given, got {rows} samples; "
            "give one mask for all samples or one for each"
        )
    return mask


def _masked(weight: Tensor, masks: Tensor) -> Tensor:
    """Return the weight under masks, (M, *weight.shape), in the place of converted masks where no gradient is wanted."""
    numbers = masks.to(weight.dtype)
    learns = torch.is_grad_enabled() and (masks.requires_grad or weight.requires_grad)
    return weight * numbers if learns or numbers is masks else numbers.mul_(weight)


def keep_weights(weight: Tensor, scores: Tensor, noisy: bool) -> Tensor:
    """Return the weight where scores keep it and 0 elsewhere, (M, O, I), without a gradient.

    Args:
        weight: (O, I).
        scores: (M, O, I), in single precision at least; they are overwritten.
        noisy: as for `relaxation.keeps`.
    """
    same = scores.dtype == weight.dtype
    return keeps(scores, noisy, scores if same else torch.empty_like(scores, dtype=weight.dtype)).mul_(weight)


def linear_by_sample(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer with weights (M, O, I), row b of the batch those of b mod M: (B, ..., O)."""
    sets, outputs, inputs = weights.shape
    if sets == 1:
        return F.linear(x, weights[0], bias)
    tokens, turns = math.prod(x.shape[1:-1]), len(x) // max(sets, 1)
    rows = x.reshape(turns, sets, tokens, inputs).transpose(0, 1).reshape(sets, turns * tokens, inputs)
    out = torch.bmm(rows, weights.mT) if bias is None else torch.baddbmm(bias, rows, weights.mT)
    return out.reshape(sets, turns, tokens, outputs).transpose(0, 1).reshape(*x.shape[:-1], outputs)


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
    masks = _masks_for(mask, weight, x.shape[0] if x.ndim > 1 else 1)
    return linear_by_sample(x, _masked(weight, masks), bias)


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
    batch = x.shape[0] if x.ndim == 4 else 1
    masks = _masks_for(mask, weight, batch)
    weights = _masked(weight, masks)
    if len(weights) == 1:
        return F.conv2d(x, weights[0], bias, stride, padding, dilation, groups)
    # One grouped convolution does all samples: the batch becomes groups.
    weights = weights.repeat(batch // len(weights), *[1] * weight.ndim).flatten(0, 1)
    folded = x.reshape(1, -1, *x.shape[-2:])
    out = F.conv2d(folded, weights, None, stride, padding, dilation, groups * batch)
    out = out.reshape(batch, weight.shape[0], *out.shape[-2:])
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]
