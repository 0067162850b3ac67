"""The masks of a search under way: given to the network as they are drawn, with their gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attaching.attachment import Attachment
from ..maskers import BlockInput, Draw, HeldMasks, LayerMask, Masker
from ..targets import LayerSpec, Network


class LiveMasks(Masker):
    """Masks that the search sets before each call; a layer without one computes as it is.

    Args:
        network: the blocks and layers that are searched or lie under the search.
        under: what was attached before: a weight is kept where its masker and the search both keep it. Its masks are
            drawn as they would be alone, and no gradient flows through what it is conditioned on.
    """

    def __init__(self, network: Network, under: Attachment | None = None) -> None:
        super().__init__(network)
        self._under = (under,)  # in a tuple: not a part of this module
        self.masks: dict[str, Tensor] = {}
        #: Which sequence of calls the next one belongs to: masks that a masker below holds are held for each apart.
        self.sequence = "both halves"
        self._held: dict[str, HeldMasks] = {}
        self._names = {block.name: [layer.name for layer in block.layers] for block in self.network.blocks}

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers."""
        (under,) = self._under
        below: Mapping[str, LayerMask] = {}
        draw = None
        if under is not None and block in {b.name for b in under.masker.network.blocks}:
            under.timestep = inputs.timestep
            draw = under.draw(len(inputs.hidden_states))
            with torch.no_grad():
                below = self._masker(under.masker).to(inputs.hidden_states.device).block_masks(block, inputs)
        return {name: _Live(self.masks.get(name), below.get(name), draw) for name in self._names[block]}

    def _masker(self, masker: Masker) -> Masker:
        """The masker below, for the present sequence of calls."""
        if not isinstance(masker, HeldMasks):
            return masker
        return self._held.setdefault(self.sequence, masker.apart())


class _Live(LayerMask):
    """The searched mask, the mask below, their product, or none."""

    def __init__(self, own: Tensor | None, below: LayerMask | None, draw: Draw | None) -> None:
        self.own, self.below, self.draw = own, below, draw

    def logits(self) -> None:
        """Return None: a product has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the mask; where the one has fewer rows than the other, they repeat."""
        if self.below is None:
            return torch.ones(()).expand(layer.shape) if self.own is None else self.own
        with torch.no_grad():
            below = self.below.mask(layer, self.draw or draw, batch)
        if self.own is None:
            return below
        own, below = self.own, below if below.ndim > len(layer.shape) else below[None]
        rows = max(len(own), len(below))
        own, below = (m.repeat(rows // len(m), *[1] * len(layer.shape)) if len(m) < rows else m for m in (own, below))
        return own * below.to(own.dtype)

    def apply(self, layer: LayerSpec, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """Compute the layer as it is where no mask is set."""
        if self.own is not None or self.below is not None:
            return super().apply(layer, module, x, mask)
        if isinstance(module, nn.Linear):
            return F.linear(x, module.weight, module.bias)
        assert isinstance(module, nn.Conv2d)
        return module._conv_forward(x, module.weight, module.bias)
