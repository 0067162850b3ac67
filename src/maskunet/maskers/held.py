"""Masks that are kept over several steps: what another masker decides is asked for anew only when it is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..operators import pack_bits
from .base import BlockInput, Draw, LayerMask, Masker, PackedMask


@dataclass
class _Kept:
    """The masks of a block, the condition that they were made for, and the latest call's timestep."""

    masks: dict[str, LayerMask]
    condition: Tensor
    timestep: float | None
    rows: int
    age: int = 0


class HeldMasks(Masker):
    """Deterministic masks of another masker, held at one bit a weight while they are fresh.

    A block's masks are made anew when a picture begins (the timestep rises), when the batch changes, after `every` calls,
    and when the condition has moved by more than `tolerance` since they were made: the relative change, largest over the
    batch, of the timestep embedding and the pooled features. A scheduler that calls twice a step counts two calls;
    pictures of a single step cannot be told apart, so do not hold masks for them.

    Args:
        masker: what decides. It is used, not copied; save it and not this.
        every: calls of the U-Net that masks serve for; None leaves it to the tolerance.
        tolerance: greatest relative change of the condition, >= 0; None leaves it to the count.

    Raises:
        ValueError: neither or a senseless one is given.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("every", "tolerance")
    deterministic: ClassVar[bool] = True

    def __init__(self, masker: Masker, every: int | None = None, tolerance: float | None = None) -> None:
        given = every is not None or tolerance is not None
        if not given or (every is not None and every < 1) or (tolerance is not None and tolerance < 0):
            raise ValueError(f"expected every >= 1 or tolerance >= 0, got {every} and {tolerance}")
        super().__init__(masker.network, masker.tau)
        self.masker, self.every, self.tolerance = masker.eval(), every, tolerance
        self.sample_counts, self.guided_half = masker.sample_counts, masker.guided_half
        self.renewals = 0
        self._kept: dict[str, _Kept] = {}
        self._layers = {layer.name: layer for layer in masker.network.layers}

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks held for a block, made anew if they are due."""
        condition = _condition(inputs)
        timestep = None if inputs.timestep is None else float(torch.as_tensor(inputs.timestep).max())
        kept = self._kept.get(block)
        if kept is None or self._due(kept, condition, timestep):
            kept = _Kept(self._packed(block, inputs), condition, timestep, len(condition))
            self._kept[block], self.renewals = kept, self.renewals + 1
        kept.age, kept.timestep = kept.age + 1, timestep
        return kept.masks

    def _due(self, kept: _Kept, condition: Tensor, timestep: float | None) -> bool:
        if kept.rows != len(condition) or kept.condition.device != condition.device:
            return True
        if timestep is None or kept.timestep is None or timestep > kept.timestep:
            return True
        if self.every is not None and kept.age >= self.every:
            return True
        if self.tolerance is None:
            return False
        change = (condition - kept.condition).norm(dim=1) / kept.condition.norm(dim=1).clamp_min(1e-12)
        return bool(change.max() > self.tolerance)

    @torch.no_grad()
    def _packed(self, block: str, inputs: BlockInput) -> dict[str, LayerMask]:
        packed: dict[str, LayerMask] = {}
        for name, form in self.masker.block_masks(block, inputs).items():
            layer = self._layers[name]
            mask = form.mask(layer, Draw(), len(inputs.hidden_states))
            sets = None if mask.ndim == len(layer.shape) else len(mask)
            packed[name] = PackedMask(pack_bits(mask), sets)
        return packed

    @classmethod
    def from_settings(cls, network: Any, settings: Mapping[str, Any]) -> HeldMasks:
        """Refuse: what is held is made while it is used."""
        raise ValueError("expected a masker that can be saved; save the masker inside, and hold it again")


def _condition(inputs: BlockInput) -> Tensor:
    parts = [inputs.hidden_states] if inputs.skip is None else [inputs.hidden_states, inputs.skip]
    pooled = [part.detach().float().mean((2, 3)) for part in parts]
    temb = inputs.temb.detach().float()
    return torch.cat([*pooled, temb.expand(len(pooled[0]), -1)], 1)
