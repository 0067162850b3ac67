"""Masked layers: operators from a layer's input, its frozen weight and a mask to the layer's output."""

from .dispatch import factored_linear, factored_logits, layer_noise, packed_linear
from .implementation import IMPLEMENTATIONS, using
from .packing import is_binary, pack_bits, unpack_bits
from .reference import masked_conv2d, masked_linear

__all__ = [
    "IMPLEMENTATIONS",
    "factored_linear",
    "factored_logits",
    "is_binary",
    "layer_noise",
    "masked_conv2d",
    "masked_linear",
    "pack_bits",
    "packed_linear",
    "unpack_bits",
    "using",
]
