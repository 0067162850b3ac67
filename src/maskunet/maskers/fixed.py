"""Binary masks that are the same at every step, at one bit per weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import CheckpointError, TargetError
from ..network import BlockSpec, LayerSpec, Network
from ..operators import is_binary, pack_bits, unpack_bits
from ..targets import block_of
from .base import Masker, module_key
from .forms import PackedMask
from .layer_mask import BlockInput, LayerMask


class FixedMasks(Masker):
    """Binary masks by layer name.

    Args:
        masks: by layer name, masks of 0 and 1 (or booleans): for a Linear (O, I) or, one per sample, (M, O, I); for a
            Conv2d (O, I, kh, kw) or (M, O, I, kh, kw). Row r of a batch takes mask r mod M. They are read one by one, so
            a mapping may compute each on access.

    Raises:
        TargetError: a name is not that of a layer in a block, or a mask is not binary or has another shape.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("samples",)

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        if not masks:
            raise TargetError("expected a mask for at least one layer, got none")
        blocks: dict[str, list[LayerSpec]] = {}
        samples: dict[str, int | None] = {}
        packed: dict[str, Tensor] = {}
        for name, mask in masks.items():
            if mask.ndim not in (2, 3, 4, 5) or 0 in mask.shape:
                raise TargetError(
                    f"expected a mask (O, I), (M, O, I), (O, I, kh, kw) or (M, O, I, kh, kw) for {name}, "
                    f"got {tuple(mask.shape)}"
                )
            if not is_binary(mask):
                raise TargetError(f"expected a mask of 0 and 1 for {name}, got other values; threshold it first")
            samples[name] = mask.shape[0] if mask.ndim in (3, 5) else None
            shape = mask.shape[1:] if mask.ndim in (3, 5) else mask.shape
            blocks.setdefault(block_of(name), []).append(LayerSpec(name, tuple(shape)))
            packed[name] = pack_bits(mask.detach())
        # The widths of the blocks do not matter to fixed masks.
        super().__init__(Network(tuple(BlockSpec(b, 0, 0, 0, tuple(layers)) for b, layers in blocks.items())))
        self.samples = samples
        self.mask_counts = frozenset(count for count in samples.values() if count is not None)
        for name, bits in packed.items():
            self.register_buffer(_key(name), bits, persistent=False)
        self._names = {block: tuple(layer.name for layer in layers) for block, layers in blocks.items()}
        self._shapes = {layer.name: layer.shape for layer in self.network.layers}

    def __getitem__(self, name: str) -> Tensor:
        """Return the mask of a layer, boolean."""
        count = self.samples[name]
        shape = self._shapes[name]
        return unpack_bits(getattr(self, _key(name)), shape if count is None else (count, *shape))

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on; see `Masker.conditions`."""
        return ("sample",) if self.mask_counts - {1} else ()

    def count_masks(self, layer: str) -> int | None:
        """Return the number of masks that a layer holds; see `Masker.count_masks`."""
        return self.samples[layer]

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers; see `Masker.block_masks`."""
        return {n: PackedMask(getattr(self, _key(n)), self.samples[n]) for n in self._names[block]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the packed masks by layer name."""
        return {layer.name: getattr(self, _key(layer.name)) for layer in self.network.layers}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Read packed masks.

        Args:
            tensors: what `tensors` returned.

        Raises:
            CheckpointError: a mask is missing or has another size.
        """
        for layer in self.network.layers:
            if layer.name not in tensors:
                raise CheckpointError(f"expected a mask for {layer.name}; it is missing")
            packed, size = tensors[layer.name], getattr(self, _key(layer.name)).numel()
            if packed.dtype != torch.uint8 or packed.shape != (size,):
                raise CheckpointError(
                    f"expected {size} bytes (uint8) of masks for {layer.name}, got {packed.numel()} of {packed.dtype}"
                )
            setattr(self, _key(layer.name), packed)

    @classmethod
    def from_settings(cls, network: Network, settings: Mapping[str, Any]) -> FixedMasks:
        """Build masks of ones, which `load_tensors` replaces.

        Args:
            network: the masked blocks and layers.
            settings: what `settings` returned.
        """
        samples = settings["samples"]
        ones = {
            layer.name: torch.ones(
                layer.shape if samples[layer.name] is None else (samples[layer.name], *layer.shape), dtype=torch.bool
            )
            for layer in network.layers
        }
        return cls(ones)


def _key(name: str) -> str:
    return "mask__" + module_key(name)
