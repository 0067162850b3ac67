"""Masks by timestep at one bit per weight: the result of a search."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import CheckpointError, SettingError, TargetError
from ..moving import outside_inference_mode
from ..network import Network
from ..operators import is_binary, pack_bits, unpack_bits
from .base import Masker
from .forms import BinaryMask, PackedMask
from .layer_mask import BlockInput, LayerMask

_RULES = ("all", "any", "majority")


class MaskSchedule(Masker):
    """Packed masks by timestep; a call at another timestep takes the nearest one's.

    A new schedule keeps every weight.

    Args:
        network: the blocks and layers that it masks.
        timesteps: the T timesteps, at least one.
        samples: masks per layer and timestep, at least 1; one for all prompts, one per prompt, or one per image.
        guided_half: "conditional" masks only the rows of a guided batch that see the prompt, and every row without
            guidance; None masks every row.

    Raises:
        SettingError: a setting is out of range.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("timesteps", "samples", "guided_half")

    def __init__(
        self, network: Network, timesteps: Sequence[float], samples: int = 1, guided_half: str | None = None
    ) -> None:
        super().__init__(network)
        if guided_half not in (None, "conditional"):
            raise SettingError(f"expected guided_half to be None or 'conditional', got {guided_half!r}")
        if not timesteps or samples < 1:
            raise SettingError(
                f"expected timesteps and samples >= 1, got {len(timesteps)} timesteps, {samples} samples"
            )
        self.timesteps, self.samples, self.guided_half = [float(t) for t in timesteps], samples, guided_half
        self.mask_counts = frozenset({samples})
        self._packed: dict[str, Tensor] = {}
        for layer in network.layers:
            ones = pack_bits(torch.ones(samples, *layer.shape, dtype=torch.bool))
            self._packed[layer.name] = ones.expand(len(self.timesteps), -1).clone()
        self._latest: dict[int, tuple[Any, int]] = {}  # timestep and index of each thread's latest call
        self._names = {block.name: tuple(layer.name for layer in block.layers) for block in network.blocks}
        self._shapes = {layer.name: layer.shape for layer in network.layers}

    def set(self, index: int, masks: Mapping[str, Tensor]) -> None:
        """Store the masks of a timestep.

        Args:
            index: index of the timestep, in [0, T).
            masks: by layer name, (samples, *weight.shape) of 0 and 1.

        Raises:
            TargetError: a mask has another shape, or is not binary.
        """
        for name, mask in masks.items():
            expected = (self.samples, *self._shapes[name])
            if tuple(mask.shape) != expected:
                raise TargetError(f"expected a mask of shape {expected} for {name}, got {tuple(mask.shape)}")
            if not is_binary(mask):
                raise TargetError(f"expected a mask of 0 and 1 for {name}, got other values; threshold it first")
            self._packed[name][index] = pack_bits(mask).to(self._packed[name].device)

    def get(self, index: int, name: str) -> Tensor:
        """Return a layer's masks at a timestep, boolean, (samples, *weight.shape).

        Args:
            index: index of the timestep, in [0, T).
            name: name of the layer.
        """
        return unpack_bits(self._packed[name][index], (self.samples, *self._shapes[name]))

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on; see `Masker.conditions`."""
        by_row = self.samples > 1 or self.guided_half is not None
        return (("timestep",) if len(self.timesteps) > 1 else ()) + (("sample",) if by_row else ())

    def density(self) -> Tensor:
        """Return the kept fraction over all layers, (T, samples)."""
        kept = torch.zeros(len(self.timesteps), self.samples)
        for i in range(len(self.timesteps)):
            kept[i] = sum(self.get(i, name).flatten(1).sum(1).cpu().float() for name in self._packed)
        return kept / self.network.weights

    def nearest(self, timestep: Any) -> int:
        """Return the index of the nearest timestep.

        Args:
            timestep: a number or a tensor, whose first value counts; None for index 0.
        """
        if timestep is None:
            return 0
        t = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        return min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - t))

    def _index(self, block: str, timestep: Any) -> int:
        """The index for a call; schedulers that call twice at one timestep (PNDM, Heun) take its two entries in turn."""
        thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        previous, index = self._latest.get(thread, (None, 0))
        current = None if timestep is None else self.timesteps[self.nearest(timestep)]
        if block == next(iter(self._names)):  # the call's first block
            following = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else None
            index = index + 1 if current is not None and current == previous == following else self.nearest(timestep)
            self._latest[thread] = (current, index)
        return index

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers at the call's timestep, or at each row's; see `Masker.block_masks`."""
        timestep, device = inputs.timestep, inputs.hidden_states.device
        for name in self._names[block]:
            if self._packed[name].device != device:
                with outside_inference_mode():
                    self._packed[name] = self._packed[name].to(device)
        if isinstance(timestep, Tensor) and timestep.numel() > 1:
            rows = [self.nearest(t) for t in timestep.reshape(-1)]
            if len(set(rows)) > 1:
                return {name: self._by_row(name, rows) for name in self._names[block]}
        index = self._index(block, timestep)
        return {name: PackedMask(self._packed[name][index], self.samples) for name in self._names[block]}

    def _by_row(self, name: str, rows: Sequence[int]) -> BinaryMask:
        """Masks of all timesteps that a batch needs; row r takes those of its own."""
        indices = sorted(set(rows))
        offsets = [self.samples * indices.index(index) for index in rows]
        return BinaryMask(torch.cat([self.get(index, name) for index in indices]), offsets)

    def select(self, sample: int) -> MaskSchedule:
        """Return the schedule of one sample, to attach it to other seeds or prompts.

        Args:
            sample: index of the sample, in [0, samples).
        """
        return self.split([sample])[0]

    def split(self, samples: Sequence[int] | None = None) -> list[MaskSchedule]:
        """Return one schedule per sample.

        Args:
            samples: indices of the samples, in [0, samples); all of them if None.
        """
        indices = range(self.samples) if samples is None else samples
        schedules = [MaskSchedule(self.network, self.timesteps, guided_half=self.guided_half) for _ in indices]
        for i in range(len(self.timesteps)):
            for name in self._packed:
                masks = self.get(i, name)
                for schedule, sample in zip(schedules, indices, strict=True):
                    schedule.set(i, {name: masks[sample : sample + 1]})
        return schedules

    def without(self, samples: Sequence[int]) -> MaskSchedule:
        """Return a schedule whose masks keep every weight for some samples.

        Args:
            samples: indices of these samples, in [0, samples).
        """
        if not samples:
            return self
        result = MaskSchedule(self.network, self.timesteps, self.samples, self.guided_half)
        for i in range(len(self.timesteps)):
            for name in self._packed:
                masks = self.get(i, name)
                masks[list(samples)] = True
                result.set(i, {name: masks})
        return result

    @classmethod
    def merge(cls, schedules: Sequence[MaskSchedule], rule: str = "majority") -> MaskSchedule:
        """Merge all samples of schedules of the same layers into one schedule that every sample shares.

        Args:
            schedules: the schedules, at least one; the result has the first one's timesteps.
            rule: a weight is kept where "all", "any" or a "majority" (half or more) of the masks keep it.

        Raises:
            TargetError: there is no schedule, or they mask different layers.
            SettingError: there is no such rule.
        """
        if rule not in _RULES:
            raise SettingError(f"expected a rule among {', '.join(_RULES)}, got {rule!r}")
        if not schedules or any(
            (s._shapes, s.guided_half) != (schedules[0]._shapes, schedules[0].guided_half) for s in schedules
        ):
            raise TargetError(
                f"expected schedules of the same layers and the same guided half to merge, got {len(schedules)} that differ"
                if schedules
                else "expected at least one schedule to merge, got none"
            )
        first = schedules[0]
        result = cls(first.network, first.timesteps, guided_half=first.guided_half)
        for i, t in enumerate(first.timesteps):
            merged = {}
            for name in first._packed:
                masks = torch.cat([s.get(s.nearest(t), name).cpu() for s in schedules])
                share = masks.float().mean(0, keepdim=True)
                merged[name] = share == 1 if rule == "all" else share > 0 if rule == "any" else share >= 0.5
            result.set(i, merged)
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return the packed masks by layer name, (T, bytes) each."""
        return dict(self._packed)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Read packed masks.

        Args:
            tensors: what `tensors` returned.

        Raises:
            CheckpointError: masks are missing or have another size.
        """
        for name, current in self._packed.items():
            packed = tensors.get(name)
            if packed is None or packed.shape != current.shape or packed.dtype != torch.uint8:
                raise CheckpointError(
                    f"expected packed masks {tuple(current.shape)} (uint8) for {name}, got "
                    f"{'none' if packed is None else f'{tuple(packed.shape)} of {packed.dtype}'}"
                )
            self._packed[name] = packed
