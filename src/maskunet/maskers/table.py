"""Free mask logits, one number per weight: the simplest masker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from ..errors import SettingError
from ..network import Network
from ..targets import Targets, describe
from .base import Masker, module_key
from .forms import DenseLogits
from .layer_mask import BlockInput, LayerMask


class MaskTable(Masker):
    """Logits S_l of every target layer, shared by the batch or one per sample.

    Args:
        network: the blocks and layers that it masks.
        initial_logit: initial value of every logit; the paper's search starts from 1, P(m = 1) = 0.934.
        samples: number M of logits per layer, (M, *weight.shape), where row r of a batch takes logits r mod M; None for
            one, (*weight.shape), that all samples share.
        tau: temperature of the straight-through gradient, > 0.

    Raises:
        SettingError: a setting is out of range.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("initial_logit", "samples", "tau")

    def __init__(
        self, network: Network, initial_logit: float = 1.0, samples: int | None = None, tau: float = 1.0
    ) -> None:
        super().__init__(network, tau)
        if not math.isfinite(initial_logit):
            raise SettingError(f"expected a finite initial_logit, got {initial_logit}")
        if samples is not None and samples < 1:
            raise SettingError(f"expected samples >= 1 or None, got {samples}")
        self.initial_logit, self.samples = initial_logit, samples
        self.mask_counts = frozenset(() if samples is None else (samples,))
        lead = () if samples is None else (samples,)
        self.logits = nn.ParameterDict(
            {
                module_key(layer.name): nn.Parameter(torch.full((*lead, *layer.shape), initial_logit))
                for layer in network.layers
            }
        )
        self._names = {block.name: tuple(layer.name for layer in block.layers) for block in network.blocks}

    @classmethod
    def for_unet(
        cls,
        unet: nn.Module,
        targets: Targets = "decoder-attention",
        *,
        initial_logit: float = 1.0,
        samples: int | None = None,
        tau: float = 1.0,
    ) -> MaskTable:
        """Build a table for a U-Net.

        Args:
            unet: the U-Net or its pipeline.
            targets: the masked layers; a preset, a regular expression or a list of suffixes.
            initial_logit: initial value of every logit.
            samples: number of logits per layer; None for one that all samples share.
            tau: temperature of the straight-through gradient, > 0.

        Raises:
            SettingError: a setting is out of range.
            TargetError: the targets match nothing, or something that cannot be masked.
        """
        return cls(describe(unet, targets), initial_logit, samples, tau)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on; see `Masker.conditions`."""
        return ("sample",) if self.mask_counts - {1} else ()

    def reset(self) -> None:
        """Set every logit to `initial_logit`."""
        with torch.no_grad():
            for logits in self.logits.values():
                logits.fill_(self.initial_logit)

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the logits of a block's layers; see `Masker.block_masks`."""
        return {name: DenseLogits(self.logits[module_key(name)]) for name in self._names[block]}
