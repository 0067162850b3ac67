"""The state of one call of the U-Net, and what hooks need of the attachment that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ..maskers import BlockInput, Draw, LayerMask
from ..network import LayerSpec
from .batch_layout import BatchLayout
from .replacement import Context
from .trace import CallRecord


@dataclass
class Call:
    """One call of the U-Net.

    Args:
        timestep: its timestep, a number or a tensor.
        number: number of the call since the latest seed, for noise in training.
        layout: layout of its batch; None where every row has masks of its own, or all share them.
        record: where a trace records it; None without one.
        strength: how strongly the masks of the current block act, in [0, 1].
        masks: masks by layer, with how they are drawn and the rows of the batch.
    """

    timestep: Any = None
    number: int = 0
    layout: BatchLayout | None = None
    record: CallRecord | None = None
    strength: float = 1.0
    masks: dict[str, tuple[LayerMask, Draw, int]] = field(default_factory=dict)


class Attached(Protocol):
    """What the hooks need of an `Attachment`."""

    enabled: bool
    call: Call | None
    is_traced_whole: bool

    def start_call(self, sample: Tensor, timestep: Any) -> Call:
        """Return the state of a new call."""

    def start_block(self, block: str, inputs: BlockInput) -> None:
        """Get a block's masks from the masker."""

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
        """Compute a masked layer."""

    def capture(self) -> Context:
        """Return a context that restores the state of the current call."""
