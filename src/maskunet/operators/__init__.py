"""Operators: what turns a layer's input, its frozen weight and a mask into the layer's output."""

from .choice import IMPLEMENTATIONS, using
from .fused import factored_linear, factored_logits, layer_noise, packed_linear
from .masked import masked_conv2d, masked_linear
from .packing import pack_bits, unpack_bits

__all__ = [
    "IMPLEMENTATIONS",
    "factored_linear",
    "factored_logits",
    "layer_noise",
    "masked_conv2d",
    "masked_linear",
    "pack_bits",
    "packed_linear",
    "unpack_bits",
    "using",
]
