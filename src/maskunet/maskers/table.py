"""Free mask logits: one number a weight, for training-free search and as the simplest masker of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from ..errors import SettingError
from ..targets import Network, Targets, describe
from .base import BlockInput, LayerMask, Masker
from .forms import Logits


class MaskTable(Masker):
    """Logits S_l (O, I) of every target layer, shared by the batch or one set a sample.

    Args:
        network: the blocks and layers that it masks.
        initial_logit: every logit at the start; the paper's search starts from 1, P(keep) = 0.934.
        samples: sets of logits, (samples, O, I) each; None shares one set. Row r of a batch takes set r mod samples.
        tau: temperature of the straight-through gradient, > 0.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("initial_logit", "samples", "tau")

    def __init__(
        self, network: Network, initial_logit: float = 1.0, samples: int | None = None, tau: float = 1.0
    ) -> None:
        super().__init__(network, tau)
        if samples is not None and samples < 1:
            raise SettingError(f"expected samples >= 1 or None, got {samples}")
        self.initial_logit, self.samples = initial_logit, samples
        self.sample_counts = frozenset(() if samples is None else (samples,))
        lead = () if samples is None else (samples,)
        self.logits = nn.ParameterDict(
            {
                layer.name.replace(".", "__"): nn.Parameter(torch.full((*lead, *layer.shape), initial_logit))
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
        """Build a table for a U-Net (or a pipeline); see the class.

        Raises:
            TargetError: the targets match nothing, or something that cannot be masked.
        """
        return cls(describe(unet, targets), initial_logit, samples, tau)

    def reset(self) -> None:
        """Set every logit back to its start."""
        with torch.no_grad():
            for logits in self.logits.values():
                logits.fill_(self.initial_logit)

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the free logits of a block's layers."""
        return {name: Logits(self.logits[name.replace(".", "__")]) for name in self._names[block]}
