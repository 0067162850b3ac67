"""What `maskunet.record` hands back: logits, masks and density by layer and by call of the U-Net."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..relaxation import density

logger = logging.getLogger(__name__)


@dataclass
class Call:
    """One call of the U-Net.

    Args:
        timestep: the timestep that it was called with.
        logits: S by layer, on the CPU, (B, *weight.shape); layers whose masks have no logits are left out.
        masks: masks by layer, boolean, on the CPU, (B, *weight.shape).
        density: kept fraction by layer, (B,).
        sizes: how many weights each of these layers has.
    """

    timestep: float | None = None
    logits: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    density: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class Trace:
    """Calls of a U-Net, in order; `logits` and `masks` are those of the latest.

    Args:
        keep: "all" calls' tensors, the "last" call's only, or none of them ("density"). Densities are always kept.
        limit_gb: past this much memory the tensors of further calls are left out, with a warning.
    """

    def __init__(self, keep: str = "all", limit_gb: float = 4.0) -> None:
        if keep not in ("all", "last", "density"):
            raise SettingError(f"expected keep to be 'all', 'last' or 'density', got {keep!r}")
        self.calls: list[Call] = []
        self.keep = keep
        self._room = int(limit_gb * 2**30)
        self._warned = False

    def begin(self, timestep: Any) -> None:
        """Start the record of a call."""
        if self.keep == "last" and self.calls:
            self.calls[-1].logits, self.calls[-1].masks = {}, {}
        number = None
        if timestep is not None:
            number = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        self.calls.append(Call(number))

    def add(self, layer: str, logits: Tensor | None, mask: Tensor, ndim: int) -> None:
        """Record one layer's logits and mask of the current call; `ndim` is that of its weight."""
        call = self.calls[-1]
        mask = mask.detach()
        mask = mask if mask.ndim > ndim else mask[None]
        call.density[layer] = density(mask, per_sample=True).cpu()
        call.sizes[layer] = mask[0].numel()
        if self.keep == "density":
            return
        need = mask.numel() * (1 if logits is None else 5)
        if self.keep == "all" and need > self._room:
            if not self._warned:
                logger.warning(
                    "record: out of room for logits and masks; only densities are kept from here on. "
                    "Pass keep='last' or a larger limit_gb."
                )
                self._warned = True
            return
        if self.keep == "all":
            self._room -= need
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
        """Kept fraction by layer, one mean over the batch for each call."""
        names = self.calls[-1].density if self.calls else {}
        return {name: [float(c.density[name].mean()) for c in self.calls if name in c.density] for name in names}

    def overall_density(self) -> list[float]:
        r"""Return the kept fraction of all masked weights, one mean over the batch for each call.

        With :math:`n_l` weights in layer l, of which the share :math:`d_{lb}` is kept for sample b,

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
