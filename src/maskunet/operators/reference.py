r"""Masked layers, per sample: :math:`y_b = (W \odot m_b) x_b + \text{bias}`.

The weight is never written. A mask of the weight's shape is shared by the batch; a leading dimension holds M masks,
where M divides the batch size B: row b takes mask b mod M, so that both halves of a guided batch take the same masks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..relaxation import hard_mask


def check_mask_count(count: int, rows: int) -> None:
    """Refuse a batch whose rows cannot be divided among masks.

    Args:
        count: number of masks M.
        rows: number of rows B.

    Raises:
        ValueError: M does not divide B.
    """
    if count < 1 or rows % count:
        raise ValueError(
            f"expected a batch that is a multiple of the {count} masks given, got {rows} samples; give one mask for all "
            "samples or one for each"
        )


def _stacked_masks(mask: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Return masks (M, *weight.shape) from a shared mask or M of them."""
    if mask.shape == weight.shape:
        return mask[None]
    if mask.shape[1:] != weight.shape or mask.ndim != weight.ndim + 1:
        raise ValueError(
            f"expected a mask of the weight's shape {tuple(weight.shape)}, with or without a leading batch dimension, "
            f"got {tuple(mask.shape)}"
        )
    if len(mask) != 1 and len(mask) != rows:  # an empty batch fits any mask
        check_mask_count(len(mask), rows)
    return mask


def _masked_weights(weight: Tensor, masks: Tensor) -> Tensor:
    """Return the weight under masks, (M, *weight.shape); without gradients, it overwrites converted masks."""
    numbers = masks.to(weight.dtype)
    needs_grad = torch.is_grad_enabled() and (masks.requires_grad or weight.requires_grad)
    return weight * numbers if needs_grad or numbers is masks else numbers.mul_(weight)


def hard_masked_weights(weight: Tensor, scores: Tensor, is_noisy: bool) -> Tensor:
    """Return the weight under the masks of scores, (M, O, I), without a gradient.

    Args:
        weight: (O, I).
        scores: (M, O, I), in single precision at least; they are overwritten.
        is_noisy: whether the scores hold noise; see `relaxation.hard_mask`.
    """
    out = scores if scores.dtype == weight.dtype else torch.empty_like(scores, dtype=weight.dtype)
    return hard_mask(scores, is_noisy, out).mul_(weight)


def linear_by_sample(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer with M weights; row b of the batch takes weight b mod M.

    Args:
        x: inputs (B, ..., I).
        weights: (M, O, I).
        bias: (O,) or None.

    Returns:
        Outputs (B, ..., O).
    """
    count, outputs, inputs = weights.shape
    if count == 1:
        return F.linear(x, weights[0], bias)
    tokens, repeats = math.prod(x.shape[1:-1]), len(x) // max(count, 1)
    rows = x.reshape(repeats, count, tokens, inputs).transpose(0, 1).reshape(count, repeats * tokens, inputs)
    out = torch.bmm(rows, weights.mT) if bias is None else torch.baddbmm(bias, rows, weights.mT)
    return out.reshape(count, repeats, tokens, outputs).transpose(0, 1).reshape(*x.shape[:-1], outputs)


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
    masks = _stacked_masks(mask, weight, x.shape[0] if x.ndim > 1 else 1)
    return linear_by_sample(x, _masked_weights(weight, masks), bias)


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
        stride: as in `torch.nn.functional.conv2d`.
        padding: as there.
        dilation: as there.
        groups: as there.

    Returns:
        Outputs (B, O, H', W').

    Raises:
        ValueError: the mask fits neither the weight nor the batch.
    """
    batch = x.shape[0] if x.ndim == 4 else 1
    masks = _stacked_masks(mask, weight, batch)
    weights = _masked_weights(weight, masks)
    if len(weights) == 1:
        return F.conv2d(x, weights[0], bias, stride, padding, dilation, groups)
    # One grouped convolution computes all samples: the batch becomes groups.
    weights = weights.repeat(batch // len(weights), *[1] * weight.ndim).flatten(0, 1)
    folded = x.reshape(1, -1, *x.shape[-2:])
    out = F.conv2d(folded, weights, None, stride, padding, dilation, groups * batch)
    out = out.reshape(batch, weight.shape[0], *out.shape[-2:])
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]
