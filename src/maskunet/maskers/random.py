"""Random masks: the paper's motivation, and the baseline for learned masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..network import LayerSpec, Network
from ..relaxation import derive_seed
from ..targets import Targets, describe
from .base import Masker
from .forms import BinaryMask
from .layer_mask import BlockInput, LayerMask


class RandomMasks(Masker):
    """Bernoulli masks, drawn from a seed, shared by the batch.

    Args:
        network: the blocks and layers that it masks.
        density: probability that a weight is kept, in [0, 1].
        seed: seed of the masks.
        every_step: whether every timestep has new masks. A mask depends on the seed, its layer and the timestep alone, so
            a run repeats exactly.

    Raises:
        SettingError: the density lies outside [0, 1].
    """

    settings_names: ClassVar[tuple[str, ...]] = ("density", "seed", "every_step")

    def __init__(self, network: Network, density: float = 0.99, seed: int = 0, every_step: bool = True) -> None:
        super().__init__(network)
        if not 0 <= density <= 1:
            raise SettingError(f"expected a density in [0, 1], got {density}")
        self.density, self.seed, self.every_step = density, seed, every_step
        self._layers = {block.name: block.layers for block in network.blocks}

    @classmethod
    def for_unet(
        cls,
        unet: nn.Module,
        targets: Targets = "decoder-attention",
        *,
        density: float = 0.99,
        seed: int = 0,
        every_step: bool = True,
    ) -> RandomMasks:
        """Build random masks for a U-Net.

        Args:
            unet: the U-Net or its pipeline.
            targets: the masked layers; a preset, a regular expression or a list of suffixes.
            density: probability that a weight is kept, in [0, 1].
            seed: seed of the masks.
            every_step: whether every timestep has new masks.

        Raises:
            SettingError: the density lies outside [0, 1].
            TargetError: the targets match nothing, or something that cannot be masked.
        """
        return cls(describe(unet, targets), density, seed, every_step)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on; see `Masker.conditions`."""
        return ("timestep",) if self.every_step else ()

    @torch.compiler.disable
    def _mask(self, layer: LayerSpec, timestep: Any, device: torch.device) -> Tensor:
        if isinstance(timestep, Tensor) and timestep.numel() > 1:  # one timestep per row
            return torch.stack([self._mask(layer, t, device) for t in timestep])
        step = float(timestep) if self.every_step and timestep is not None else None
        generator = torch.Generator(device).manual_seed(derive_seed(self.seed, layer.name, step))
        return torch.rand(layer.shape, generator=generator, device=device) < self.density

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return random masks of a block's layers; see `Masker.block_masks`."""
        timestep, device = inputs.timestep, inputs.hidden_states.device
        timestep = timestep if self.every_step else None
        return {layer.name: BinaryMask(self._mask(layer, timestep, device)) for layer in self._layers[block]}
