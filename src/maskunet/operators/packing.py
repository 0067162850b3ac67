"""Binary masks at one bit per weight, for files and for memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BIT_VALUES = (128, 64, 32, 16, 8, 4, 2, 1)
#: Sum of 2^(63 - 9 i) for i from 0 to 7, as a signed number.
_GATHER = sum(1 << (63 - 9 * i) for i in range(8)) - (1 << 64)


def is_binary(mask: Tensor) -> bool:
    """Return whether a mask holds nothing but 0 and 1 (or booleans); NaN is neither.

    Args:
        mask: any shape.
    """
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask into uint8, eight entries per byte, most significant bit first.

    Args:
        mask: n entries of 0 and 1 (or booleans), any shape.

    Returns:
        The bytes, (ceil(n / 8),).
    """
    bits = (mask.reshape(-1) != 0).to(torch.uint8)
    eights = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(torch.int64)
    # Eight bytes of 0 or 1 read as one number b_0 + 2^8 b_1 + ...: the product has b_i at bit 63 - i, and no two of its
    # terms meet.
    return ((eights * _GATHER) >> 56).to(torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.bool) -> Tensor:
    """Undo `pack_bits`.

    Args:
        packed: bytes (ceil(n / 8),), uint8.
        shape: shape of the mask, n entries.
        dtype: dtype of the mask.

    Returns:
        The mask.

    Raises:
        ValueError: `packed` does not hold the number of bytes that `shape` needs.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // 8):
        raise ValueError(
            f"expected {-(-count // 8)} bytes (uint8) for a mask of shape {tuple(shape)}, "
            f"got {packed.numel()} of {packed.dtype}"
        )
    # One look-up per byte gives its eight entries: four times as fast as testing bits.
    values = torch.arange(256, dtype=torch.uint8, device=packed.device)
    bits = torch.tensor(_BIT_VALUES, dtype=torch.uint8, device=packed.device)
    table = (values[:, None] & bits) != 0
    if dtype == torch.bool or torch.compiler.is_compiling():
        # Eight booleans are copied as one 64-bit number. Compiled, a look-up of rows of numbers is five times slower.
        numbers = table.view(torch.int64).reshape(256)
        return numbers.index_select(0, packed.int()).view(torch.bool)[:count].reshape(shape).to(dtype)
    return table.to(dtype).index_select(0, packed.int()).flatten()[:count].reshape(shape)
