"""The trace of `maskunet.record`: logits, masks and densities by layer and call of the U-Net."""

from __future__ import annotations

import logging
import numbers
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..relaxation import density

logger = logging.getLogger(__name__)


@dataclass
class CallRecord:
    """One call of the U-Net.

    Args:
        timestep: its timestep.
        logits: S by layer, on the CPU, (B, *weight.shape); without layers whose masks have no logits.
        masks: masks by layer, boolean, on the CPU, (B, *weight.shape).
        density: kept fraction by layer, (B,).
        sizes: number of weights by layer.
    """

    timestep: float | None = None
    logits: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    density: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class Trace:
    """The calls of a U-Net, in order; `logits` and `masks` are those of the latest.

    Args:
        keep: the tensors to keep: "all", those of the "last" call, or none ("density"). Densities are always kept.
        limit_gb: memory for the tensors, in GiB; further calls keep densities only, with a warning.

    Raises:
        SettingError: there is no such `keep`, or the limit is not a number >= 0.
    """

    def __init__(self, keep: str = "all", limit_gb: float = 4.0) -> None:
        if keep not in ("all", "last", "density"):
            raise SettingError(f"expected keep to be 'all', 'last' or 'density', got {keep!r}")
        is_number = isinstance(limit_gb, numbers.Real) and not isinstance(limit_gb, bool)
        if not is_number or not 0 <= limit_gb < 2**33:
            raise SettingError(f"expected limit_gb to be a number of GiB >= 0 and below 2**33, got {limit_gb!r:.80}")
        self.calls: list[CallRecord] = []
        self.keep = keep
        self._free_bytes = int(limit_gb * 2**30)
        self._has_warned = False

    def begin(self, timestep: Any) -> CallRecord:
        """Start and return the record of a call.

        Args:
            timestep: its timestep, a number or a tensor.
        """
        if self.keep == "last" and self.calls:
            self.calls[-1].logits, self.calls[-1].masks = {}, {}
        number = None
        if timestep is not None:
            number = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        self.calls.append(CallRecord(number))
        return self.calls[-1]

    def add(self, call: CallRecord, layer: str, logits: Tensor | None, mask: Tensor, ndim: int) -> None:
        """Record the logits and the mask of a layer in a call.

        Args:
            call: the call's record.
            layer: name of the layer.
            logits: (*weight.shape) or (B, *weight.shape); None if there are none.
            mask: (*weight.shape) or (B, *weight.shape).
            ndim: dimensions of the layer's weight.
        """
        mask = mask.detach()
        mask = mask if mask.ndim > ndim else mask[None]
        call.density[layer] = density(mask, per_sample=True).cpu()
        call.sizes[layer] = mask[0].numel()
        if self.keep == "density":
            return
        size = mask.numel() * (1 if logits is None else 5)
        if self.keep == "all" and size > self._free_bytes:
            if not self._has_warned:
                logger.warning(
                    "record: limit_gb is used up; only densities are kept from here on. Pass keep='last' or a larger "
                    "limit_gb."
                )
                self._has_warned = True
            return
        if self.keep == "all":
            self._free_bytes -= size
        call.masks[layer] = mask.to("cpu", torch.bool, copy=True)
        if logits is not None:
            logits = logits.detach()
            call.logits[layer] = (logits if logits.ndim > ndim else logits[None]).to("cpu", torch.float32, copy=True)

    @property
    def logits(self) -> dict[str, Tensor]:
        """Logits of the latest call by layer, (B, *weight.shape)."""
        return self.calls[-1].logits if self.calls else {}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks of the latest call by layer, boolean, (B, *weight.shape)."""
        return self.calls[-1].masks if self.calls else {}

    @property
    def density(self) -> dict[str, list[float]]:
        """Kept fraction by layer, one mean over the batch per call."""
        names = self.calls[-1].density if self.calls else {}
        return {name: [float(c.density[name].mean()) for c in self.calls if name in c.density] for name in names}

    def overall_density(self) -> list[float]:
        r"""Return the kept fraction of all masked weights, one mean over the batch per call.

        With :math:`n_l` weights in layer l and its kept fraction :math:`d_{lb}` for sample b,

        .. math:: \frac{\sum_l n_l \, \frac{1}{B} \sum_b d_{lb}}{\sum_l n_l}
        """
        return [
            sum(size * float(call.density[layer].mean()) for layer, size in call.sizes.items())
            / max(1, sum(call.sizes.values()))
            for call in self.calls
        ]

    @property
    def timesteps(self) -> list[float | None]:
        """The timestep of each call."""
        return [call.timestep for call in self.calls]
