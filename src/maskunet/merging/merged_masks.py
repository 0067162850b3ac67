"""What a merge has written: the masks and the values that it removed, which is all that undoing it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..network import Network
from ..operators import pack_bits, unpack_bits
from ..targets import block_of

_ATTRIBUTE = "_maskunet_merged"
#: Integers as wide as a weight, to add up its bits.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(eq=False)
class MergedLayer:
    """The merge of one layer.

    Args:
        packed: its mask, packed by `pack_bits`, on the CPU.
        removed: the values of the weights that the mask removes, on the CPU.
        bit_sum: sum of the merged weight's bits, which shows whether it was changed since.
    """

    packed: Tensor
    removed: Tensor
    bit_sum: int = 0


@dataclass(eq=False)
class MergedMasks:
    """Masks that are merged into a U-Net, with what `unmerge` needs: one bit per masked weight, and the removed values.

    Args:
        masker: name of the masker's class.
        network: the masked layers.
        strength: how strongly the masks act, one number, or one per block.
        density: kept share of the masked weights.
        disagreement: mean share of the masked weights whose merged mask differs from the masker's own; 0 if its masks
            depend on nothing.
        layers: the merge of each layer by its name.
    """

    masker: str
    network: Network = field(repr=False)
    strength: float | Mapping[str, float]
    density: float
    disagreement: float
    layers: dict[str, MergedLayer] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Memory that undoing the merge takes, in bytes."""
        return sum(layer.packed.nbytes + layer.removed.nbytes for layer in self.layers.values())

    def strength_of(self, layer: str) -> float:
        """Return the strength in a layer.

        Args:
            layer: its name.
        """
        if isinstance(self.strength, Mapping):
            return float(self.strength.get(block_of(layer), 1.0))
        return float(self.strength)

    def mask(self, layer: str, weight: Tensor) -> Tensor:
        """Return the mask of a layer, boolean, on its weight's device.

        Args:
            layer: its name.
            weight: its weight.
        """
        return unpack_bits(self.layers[layer].packed.to(weight.device), tuple(weight.shape))

    def write(self, layer: str, weight: Tensor, mask: Tensor) -> None:
        """Mask a weight in place, and keep what undoing it needs.

        Args:
            layer: name of the layer.
            weight: its weight.
            mask: its mask, boolean.
        """
        # Kept before the weight is written, so that a write that fails can be undone.
        self.layers[layer] = MergedLayer(pack_bits(mask).cpu(), weight[~mask].to("cpu", copy=True))
        mask_weight(weight, mask, self.strength_of(layer))
        self.layers[layer].bit_sum = bit_sum(weight)

    def restore(self, layer: str, weight: Tensor) -> None:
        """Undo `write`, bit for bit.

        Args:
            layer: name of the layer.
            weight: its weight.
        """
        weight[~self.mask(layer, weight)] = self.layers[layer].removed.to(weight.device)


def mask_weight(weight: Tensor, mask: Tensor, strength: float) -> None:
    """Write W (1 - s (1 - m)) into a weight.

    Args:
        weight: W, of any floating dtype.
        mask: m, boolean.
        strength: s, in [0, 1].
    """
    if strength == 1:
        weight.mul_(mask)  # the very product of the dense operator, signs of zeros included
    elif strength > 0:
        weight[~mask] *= 1 - strength


def bit_sum(weight: Tensor) -> int:
    """Return the sum of a weight's bits read as integers, in any order, on any device and in any memory format the same.

    Args:
        weight: the weight.
    """
    return int(weight.detach().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64))


def merged_masks_of(unet: Any) -> MergedMasks | None:
    """Return the masks that are merged into a U-Net, or None.

    Args:
        unet: the U-Net.
    """
    merged: MergedMasks | None = unet.__dict__.get(_ATTRIBUTE)
    return merged


def set_merged_masks(unet: Any, merged: MergedMasks | None) -> None:
    """Mark a U-Net as merged, or as not merged.

    Args:
        unet: the U-Net.
        merged: its masks; None for none.
    """
    # In the instance's own attributes, so that a copy of the model, or its pickle, has its own.
    unet.__dict__.pop(_ATTRIBUTE, None)
    if merged is not None:
        unet.__dict__[_ATTRIBUTE] = merged
