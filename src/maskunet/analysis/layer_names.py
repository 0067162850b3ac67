"""Names for layers in plots and tables: which projection, which block, and a short form."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..targets import LayerSpec

_PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
_KINDS = {"attn1": "self", "attn2": "cross"}


def projection_of(name: str) -> str:
    """Return q, k, v or out, or "conv" of a layer that is no projection of attention."""
    return next((short for suffix, short in _PROJECTIONS.items() if name.endswith("." + suffix)), "conv")


def projections_of(layers: Sequence[LayerSpec]) -> list[str]:
    """Return the projections that occur, in the order q, k, v, out, conv."""
    found = {projection_of(layer.name) for layer in layers}
    return [p for p in (*_PROJECTIONS.values(), "conv") if p in found]


def short_name(name: str) -> str:
    """Return a layer's name for a label: "up 1, 0.0 cross q" for block up_blocks.1, attention 0, transformer block 0."""
    found = re.match(r"(\w+?)_blocks?(?:\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.(attn\d)\.", name)
    if found is None:
        return name
    block, number, attention, transformer, kind = found.groups()
    where = f"{block} {number}" if number else block
    return f"{where}, {attention}.{transformer} {_KINDS[kind]} {projection_of(name)}"
