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
    """The masks of a block, the condition that they were made for, and how many calls they have served."""

    masks: dict[str, LayerMask]
    condition: Tensor
    rows: int
    age: int = 0


class HeldMasks(Masker):
    """Deterministic masks of another masker, held at one bit a weight while they are fresh.

    A block's masks are made anew when a picture begins (the timestep rises, or stays and brings other features), when the
    batch changes, after `every` calls, and when the condition has moved by more than `tolerance` since they were made: the
    relative change, largest over the batch, of the timestep embedding and the pooled features. A call that repeats the one
    before, as a search does, counts as the same. A scheduler that calls twice at a timestep begins anew each time.

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
        self._call: tuple[float | None, Tensor] | None = None  # timestep and condition of the call under way
        self._begins = self._repeats = False  # whether it begins a picture, or is the one before over again
        self._layers = {layer.name: layer for layer in masker.network.layers}

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks held for a block, made anew if they are due."""
        condition = _condition(inputs)
        timestep = None if inputs.timestep is None else float(torch.as_tensor(inputs.timestep).max())
        kept = self._kept.get(block)
        if block == self.network.blocks[0].name:
            # What comes into the first block says which call it is; later ones see the masks of those before.
            self._note_call(condition, timestep)
        if kept is None or self._due(kept, condition):
            kept = _Kept(self._packed(block, inputs), condition, len(condition))
            self._kept[block], self.renewals = kept, self.renewals + 1
        kept.age += not self._repeats or kept.age == 0
        return kept.masks

    def apart(self) -> HeldMasks:
        """Return one that holds masks of its own by the same rules, for calls that are another sequence."""
        return HeldMasks(self.masker, self.every, self.tolerance)

    def _note_call(self, condition: Tensor, timestep: float | None) -> None:
        before, self._call = self._call, (timestep, condition)
        self._begins = self._repeats = False
        if timestep is None or before is None or before[0] is None or timestep > before[0]:
            self._begins = True
        elif timestep == before[0]:
            same = before[1].shape == condition.shape and before[1].device == condition.device
            self._repeats = same and bool(torch.equal(before[1], condition))
            self._begins = not self._repeats

    def _due(self, kept: _Kept, condition: Tensor) -> bool:
        if self._begins or kept.rows != len(condition) or kept.condition.device != condition.device:
            return True
        if self.every is not None and kept.age >= self.every and not (self._repeats and self.every > 1):
            return True
        if self.tolerance is None:
            return False
        change = (condition - kept.condition).norm(dim=1) / kept.condition.norm(dim=1).clamp_min(1e-12)
        return bool(change.max() > self.tolerance)

    @torch.no_grad()
    def _packed(self, block: str, inputs: BlockInput) -> dict[str, LayerMask]:
        packed: dict[str, LayerMask] = {}
        for name, form in self.masker.block_masks(block, inputs).items():
            if isinstance(form, PackedMask):  # as it is: it may mask one half of the batch alone
                packed[name] = form
                continue
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
