"""The masks of a search under way: given to the network as they are drawn, with their gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..maskers import BlockInput, Draw, LayerMask, Masker
from ..maskers.base import GivenMask
from ..targets import LayerSpec, Network


class LiveMasks(Masker):
    """Masks that the search sets before each call; a layer without one keeps every weight.

    Args:
        network: the blocks and layers that are searched or lie under the search.
        under: a trained masker to search on top of: a weight is kept where both keep it.
    """

    def __init__(self, network: Network, under: Masker | None = None) -> None:
        super().__init__(network)
        self.under = under
        self.masks: dict[str, Tensor] = {}
        self._names = {block.name: [layer.name for layer in block.layers] for block in self.network.blocks}
        self._shapes = {layer.name: layer.shape for layer in self.network.layers}

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers."""
        below: Mapping[str, LayerMask] = {}
        if self.under is not None and block in {b.name for b in self.under.network.blocks}:
            below = self.under.block_masks(block, inputs)
        found: dict[str, LayerMask] = {}
        for name in self._names[block]:
            if name not in self.masks:
                ones = torch.ones(self._shapes[name], device=inputs.hidden_states.device)
                found[name] = below[name] if name in below else GivenMask(ones)
            else:
                own = GivenMask(self.masks[name])
                found[name] = _Both(own, below[name]) if name in below else own
        return found


class _Both(LayerMask):
    """The product of two masks."""

    def __init__(self, own: LayerMask, below: LayerMask) -> None:
        self.own, self.below = own, below

    def logits(self) -> None:
        """Return None: a product has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the product; where the one has fewer rows than the other, they repeat."""
        own, below = self.own.mask(layer, draw, batch), self.below.mask(layer, draw, batch)
        if below.ndim > len(layer.shape) and below.shape[0] > own.shape[0]:
            own = own.repeat(below.shape[0] // own.shape[0], *[1] * len(layer.shape))
        return own * below.to(own.dtype)
