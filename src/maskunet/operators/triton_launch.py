"""Launch the Triton kernels: where they run, with which tiles, and on which memory layout."""

from __future__ import annotations

import contextlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# Fused multiply-adds are Triton's default; 3.9 warns if the option is not set.
_OPTIONS = {"num_stages": 2, "enable_fp_fusion": True, "WIDE": False}


def available(device: torch.device | str) -> bool:
    """Return whether the kernels run on a device: Triton is installed, and there is a GPU or Triton's interpreter.

    Args:
        device: the device.
    """
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET", "0") == "0":
        return False  # without importing Triton
    try:
        kernels = _kernels()
    except ImportError:
        return False
    return torch.device(device).type == "cuda" or _is_interpreted(kernels)


def triton_gumbel_noise(seed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the Gumbel noise that the kernels draw.

    Args:
        seed: integers (D,).
        shape: shape (O, I) of the weight.

    Returns:
        Noise (D, O, I).
    """
    noise = torch.empty(len(seed), *shape, device=seed.device)
    tiles = {"BLOCK_O": 32, "BLOCK_I": 32}
    with _current_device(noise):
        grid = (-(-shape[0] // 32), -(-shape[1] // 32), len(seed))
        _kernels().gumbel[grid](seed.to(torch.int64).contiguous(), noise, *shape, **tiles)
    return noise


def launch_product(
    a: Tensor, weight: Tensor, bias: Tensor | None, masks: tuple[Any, ...], *, is_transposed: bool = False
) -> Tensor:
    """Multiply by a masked weight.

    Args:
        a: inputs (B, N, I), or gradients (B, N, O) if `is_transposed`.
        weight: (O, I).
        bias: (O,) or None.
        masks: left, right, row, seeds and packed bits, each or None, and the number of masks.
        is_transposed: whether to multiply by the transposed weight.

    Returns:
        (B, N, O), or (B, N, I) if `is_transposed`.
    """
    left, right, row, seeds, packed, num_masks = masks
    rank = 0 if left is None else left.shape[2]
    samples, tokens = a.shape[:2]
    a, weight = _in_rows(a), _in_rows(weight)
    out = a.new_empty(samples, tokens, weight.shape[1 if is_transposed else 0])
    if not out.numel():
        return out
    kernels = _kernels()
    gpu_tiles = product_tiles(tokens, rank, a.dtype, is_transposed)
    tiles = _interpreter_tiles(a.dtype) if _is_interpreted(kernels) else gpu_tiles
    width = tiles["BLOCK_I" if is_transposed else "BLOCK_O"]
    grid = (-(-tokens // tiles["BLOCK_N"]), -(-out.shape[2] // width), samples)
    sizes = (tokens, *weight.shape, num_masks, 1 if seeds is None else len(seeds), *a.stride(), *weight.stride())
    flags = {"PACKED": packed is not None, "BIASED": bias is not None, "TRANSPOSED": is_transposed}
    flags |= {"NOISE": seeds is not None}
    tensors = (a, weight, bias, left, right, row, seeds, packed, out)
    with _current_device(a):
        kernels.product[grid](*tensors, *sizes, RANK=rank, **flags, **tiles)
    return out


def launch_factor_gradients(
    x: Tensor, grad: Tensor, weight: Tensor, factors: tuple[Any, ...], tau: float, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Compute the straight-through gradients of factors.

    Args:
        x: inputs (B, N, I).
        grad: gradients of the outputs (B, N, O).
        weight: (O, I).
        factors: left (M, O, r), right (I, r), row (I,), and seeds (D,) or None.
        tau: temperature, > 0.
        needs: whether left, right and row need a gradient.

    Returns:
        Gradients to left, right and row in float32; None where none is needed.
    """
    left, *_, seeds = factors
    (samples, tokens, inputs), (num_masks, outputs, rank) = x.shape, left.shape
    draws = 1 if seeds is None else len(seeds)
    groups = max(num_masks, draws)
    x, grad, weight = _in_rows(x), _in_rows(grad), _in_rows(weight)
    kernels = _kernels()
    tiles = _interpreter_tiles(x.dtype) if _is_interpreted(kernels) else gradient_tiles(rank)
    grid = (-(-outputs // tiles["BLOCK_O"]), -(-inputs // tiles["BLOCK_I"]), groups)
    is_atomic = not torch.are_deterministic_algorithms_enabled()
    slots = (1, 1, 1) if is_atomic else (grid[1] * (groups // num_masks), grid[0] * groups, grid[0] * groups)
    sums = [f.new_zeros(n, *f.shape) if need else None for f, n, need in zip(factors, slots, needs, strict=False)]
    sizes = (samples, tokens, outputs, inputs, num_masks, draws, groups, tau)
    strides = (*x.stride(), *grad.stride(), *weight.stride())
    flags = dict(zip(("LEFT", "RIGHT", "ROW"), needs, strict=True))
    flags |= {"RANK": rank, "NOISE": seeds is not None, "ATOMIC": is_atomic}
    if samples and tokens:
        with _current_device(x):
            tensors = (x, grad, weight, *factors, *sums)
            kernels.factor_gradients[grid](*tensors, *sizes, *strides, **flags, **tiles)
    return tuple(None if s is None else s[0] if is_atomic else s.sum(0) for s in sums)


def product_tiles(tokens: int, rank: int, dtype: torch.dtype, is_transposed: bool) -> dict[str, Any]:
    """Return tile sizes and warps of `product` on a GPU, which seldom spill registers up to rank 32.

    Args:
        tokens: tokens per sample N.
        rank: rank of the factors r; 0 for packed masks.
        dtype: dtype of the product.
        is_transposed: whether the weight is transposed.
    """
    is_half = dtype != torch.float32
    # Many tokens per tile share the work of making the mask.
    block_n = 128 if is_half and tokens > 64 else 64 if tokens > 16 else 16
    depth = 64 if is_half else 16  # float32 is multiplied without tensor cores, from registers
    sizes = {
        "BLOCK_N": block_n,
        "BLOCK_O": depth if is_transposed else 64,
        "BLOCK_I": 64 if is_transposed else depth,
    }
    return sizes | {"BLOCK_R": _rank_block(rank), "num_warps": 4 if is_half and block_n < 128 else 8} | _OPTIONS


def gradient_tiles(rank: int) -> dict[str, Any]:
    """Return tile sizes and warps of `factor_gradients` on a GPU.

    Args:
        rank: rank of the factors r.
    """
    sizes = {"BLOCK_N": 32, "BLOCK_O": 64, "BLOCK_I": 64 if rank <= 16 else 32, "BLOCK_R": _rank_block(rank)}
    return sizes | {"num_warps": 8} | _OPTIONS


def _rank_block(rank: int) -> int:
    return 16 if rank <= 16 else 32  # tl.dot takes no less than 16


def _interpreter_tiles(dtype: torch.dtype) -> dict[str, Any]:
    """The smallest tiles, so that small tests cross their borders."""
    return dict.fromkeys(("BLOCK_N", "BLOCK_O", "BLOCK_I", "BLOCK_R"), 16) | {"WIDE": dtype == torch.bfloat16}


def _in_rows(tensor: Tensor) -> Tensor:
    """Make the last dimension contiguous: on a GPU a copy costs less than strided reads, tile by tile."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _is_interpreted(kernels: ModuleType) -> bool:
    return type(kernels.product).__name__ == "InterpretedFunction"


def _current_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make a tensor's GPU the current one, where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
