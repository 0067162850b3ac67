"""The masker of a search: it applies the masks that the search has just drawn, with their gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attaching import Attachment
from ..attaching.call import Call
from ..attaching.masked_layer import MaskedLayer
from ..maskers import BlockInput, Draw, LayerMask, Masker
from ..network import LayerSpec, Network


class SearchedMasks(Masker, savable=False):
    """Masks that the search sets before each call; a layer without one computes as in the base model.

    Args:
        network: blocks and layers that are searched or that `underlying` masks.
        underlying: attachment from before the search; a weight is kept where both keep it. Its masks are drawn as they
            would be without the search, and no gradient flows to the inputs that it is conditioned on.
    """

    def __init__(self, network: Network, underlying: Attachment | None = None) -> None:
        super().__init__(network)
        self._underlying = (underlying,)  # in a tuple, so that it is no submodule
        self.masks: dict[str, Tensor] = {}
        self._names = {block.name: [layer.name for layer in block.layers] for block in self.network.blocks}

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers.

        Args:
            block: name of the block.
            inputs: inputs of the block.
        """
        (underlying,) = self._underlying
        lower: Mapping[str, MaskedLayer] = {}
        if underlying is not None and block in {b.name for b in underlying.masker.network.blocks}:
            call = Call(underlying.masker, underlying.strength, inputs.timestep)
            with torch.no_grad():
                lower = underlying.layer_masks(block, inputs, call)
        return {name: _SearchedMask(self.masks.get(name), lower.get(name)) for name in self._names[block]}


class _SearchedMask(LayerMask):
    """The searched mask, the underlying one, their product, or none."""

    def __init__(self, searched: Tensor | None, lower: MaskedLayer | None) -> None:
        self.searched, self.lower = searched, lower

    def logits(self) -> None:
        """Return None, since a product has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the product of the masks; the one with fewer rows is repeated.

        Args:
            layer: the layer.
            draw: how the searched masker draws.
            batch: rows of the layer's input.
        """
        if self.lower is None:
            return torch.ones(()).expand(layer.shape) if self.searched is None else self.searched
        with torch.no_grad():
            lower = self.lower.mask.mask(layer, self.lower.draw, batch)
        return self._product(lower, layer)

    def factor(self, layer: LayerSpec, module: nn.Module, draw: Draw, batch: int) -> Tensor | None:
        """Return the product of the searched mask and of the underlying one at its strength; None at full strength.

        Args:
            layer: the layer.
            module: its module.
            draw: how the searched masker draws.
            batch: rows of the layer's input.
        """
        with torch.no_grad():
            lower = None if self.lower is None else self.lower.factor(layer, module)
        return None if lower is None else self._product(lower, layer)

    def _product(self, lower: Tensor, layer: LayerSpec) -> Tensor:
        if self.searched is None:
            return lower
        pair = self.searched, lower if lower.ndim > len(layer.shape) else lower[None]
        rows = max(map(len, pair))
        searched, lower = (m.repeat(rows // len(m), *[1] * len(layer.shape)) if len(m) < rows else m for m in pair)
        return searched * lower.to(searched.dtype)

    def apply(self, layer: LayerSpec, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """Compute the layer, as in the base model if it has no mask.

        Args:
            layer: the layer.
            module: its module.
            x: its input.
            mask: result of `mask`.
        """
        if self.searched is not None or self.lower is not None:
            return super().apply(layer, module, x, mask)
        if isinstance(module, nn.Linear):
            return F.linear(x, module.weight, module.bias)
        assert isinstance(module, nn.Conv2d)
        return module._conv_forward(x, module.weight, module.bias)
