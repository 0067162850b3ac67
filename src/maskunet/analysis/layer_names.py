"""Names of layers in plots and tables: projection, block, and a short form."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..network import LayerSpec

_PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
_KINDS = {"attn1": "self", "attn2": "cross"}


def projection_name(layer: str) -> str:
    """Return q, k, v or out; "conv" for a layer that is no projection of attention.

    Args:
        layer: the layer's name.
    """
    return next((short for suffix, short in _PROJECTIONS.items() if layer.endswith("." + suffix)), "conv")


def projection_names(layers: Sequence[LayerSpec]) -> list[str]:
    """Return the projections among some layers, in the order q, k, v, out, conv.

    Args:
        layers: the layers.
    """
    names = {projection_name(layer.name) for layer in layers}
    return [p for p in (*_PROJECTIONS.values(), "conv") if p in names]


def block_name(layer: str) -> str:
    """Return the block of a layer, such as "up_blocks.1".

    Args:
        layer: the layer's name.
    """
    return layer.split(".attentions")[0].split(".resnets")[0].split(".upsamplers")[0].split(".downsamplers")[0]


def short_name(layer: str) -> str:
    """Return a label: "up 1, 0.0 cross q" for block up_blocks.1, attention 0, transformer block 0.

    Args:
        layer: the layer's name.
    """
    match = re.match(r"(\w+?)_blocks?(?:\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.(attn\d)\.", layer)
    if match is None:
        return layer
    block, number, attention, transformer, kind = match.groups()
    label = f"{block} {number}" if number else block
    return f"{label}, {attention}.{transformer} {_KINDS[kind]} {projection_name(layer)}"
