"""The stack of linear layers at the end of ImageReward and the aesthetic predictor.

Both are published without activations between the layers (they are commented out in the original code), so the stack is
an affine map. Dropout counts as a layer in the keys and does nothing at inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError


def linear_head(tensors: Mapping[str, Tensor], width: int, name: str) -> nn.Sequential:
    """Build the head from its state dict.

    Args:
        tensors: `layers.N.weight` (out, in) and `layers.N.bias` (out,), or one `weight` and `bias`.
        width: number of input features.
        name: name of the reward, for errors.

    Returns:
        The layers in order, frozen, float32, from `width` features to one value.

    Raises:
        CheckpointError: the layers do not map `width` features to one value, or keys are unknown.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(?:(?:layers\.)?(\d+)\.)?(weight|bias)", key)
        if match is None:
            raise CheckpointError(f"expected keys like 'layers.0.weight' in the head of {name}, got {key!r}")
        layers.setdefault(int(match[1] or 0), {})[match[2]] = value
    head = nn.Sequential()
    shapes = []
    for index in sorted(layers):
        weight, bias = layers[index].get("weight"), layers[index].get("bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise CheckpointError(
                f"expected a weight (out, in) and a bias (out,) in layer {index} of the head of {name}"
            )
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        head.append(layer)
        shapes.append(tuple(weight.shape))
    widths = [width, *(shape[0] for shape in shapes)]
    if not shapes or widths[-1] != 1 or [shape[1] for shape in shapes] != widths[:-1]:
        raise CheckpointError(f"expected the head of {name} to map {width} features to 1, got layers {shapes}")
    return head.float().eval().requires_grad_(False)
