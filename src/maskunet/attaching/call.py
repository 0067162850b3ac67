"""The state of one call of the U-Net, and what hooks need of the attachment that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ..maskers import BlockInput, ComposedMasker, Masker
from ..network import LayerSpec
from .batch_layout import BatchLayout
from .masked_layer import MaskedLayer
from .replacement import Context
from .strength import Strengths
from .trace import CallRecord


@dataclass
class Call:
    """One call of the U-Net.

    Args:
        masker: its masker, which another thread may change for the next call.
        strength: how strongly the masks act.
        timestep: its timestep, a number or a tensor.
        number: number of the call since the latest seed, for noise in training.
        layout: layout of its batch; None where every row has masks of its own, or all share them.
        record: where a trace records it; None without one.
        masks: masks by layer.
    """

    masker: Masker
    strength: Strengths
    timestep: Any = None
    number: int = 0
    layout: BatchLayout | None = None
    record: CallRecord | None = None
    masks: dict[str, MaskedLayer] = field(default_factory=dict)

    def masks_layer(self, layer: str) -> bool:
        """Whether the layer has masks; one of a composition has none where its maskers are switched off.

        Args:
            layer: its name.
        """
        return not (isinstance(self.masker, ComposedMasker) and layer in self.masker.unmasked_layers)


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
