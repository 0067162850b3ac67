"""Operators: what turns a layer's input, its frozen weight and a mask into the layer's output."""

from .masked import masked_conv2d, masked_linear
from .packing import pack_bits, unpack_bits

__all__ = ["masked_conv2d", "masked_linear", "pack_bits", "unpack_bits"]
