"""Where a mask meets a block: a hook that looks at the block's arguments, and refuses layers that masks would miss."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from torch import nn

from ..errors import TargetError
from ..maskers import BlockInput
from ..targets import BlockSpec
from .replacement import Context, follow_checkpointing, leave_checkpointing


class Call(Protocol):
    """What a block hook needs to know of the U-Net's call under way."""

    enabled: bool
    timestep: Any

    def capture(self) -> Context:
        """Return a context that goes back to the state of the call under way."""

    def start_block(self, block: str, inputs: BlockInput) -> None:
        """Ask the masker for a block's masks."""


class BlockHook:
    """Pre-forward hook of a block: it takes what the masker needs from the block's arguments.

    Args:
        unet: the U-Net.
        block: the block.
        call: state of the U-Net's call, an `Attachment`.
    """

    def __init__(self, unet: nn.Module, block: BlockSpec, call: Call) -> None:
        self.unet, self.block, self.call = unet, block, call
        self.module = unet.get_submodule(block.name)
        self.parameters = list(inspect.signature(type(self.module).forward).parameters)[1:]
        self.checkpointing = [m for m in self.module.modules() if hasattr(m, "gradient_checkpointing")]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(m.gradient_checkpointing for m in self.checkpointing):
            follow_checkpointing(self.checkpointing, self.call.capture)
        if not self.call.enabled:
            return
        refuse_fused(self.unet, self.block)
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        skips = given.get("res_hidden_states_tuple")
        skip = skips[-1] if skips else None
        inputs = BlockInput(given["hidden_states"], skip, given["temb"], self.call.timestep)
        self.call.start_block(self.block.name, inputs)

    def remove(self) -> None:
        """Leave gradient checkpointing as it was."""
        leave_checkpointing(self.checkpointing)


def refuse_fused(unet: nn.Module, block: BlockSpec) -> None:
    """Refuse what a mask would miss or hit wrongly.

    Raises:
        TargetError: a block's projections, or a LoRA of one of its layers, are fused.
    """
    for layer in block.layers:
        attention = layer.name.rpartition(".to_")[0]
        if attention and _is_fused(unet.get_submodule(attention)):
            raise TargetError(
                f"expected separate to_q, to_k and to_v, {attention} has fused projections, which masks cannot reach. "
                "Call unfuse_qkv_projections() first."
            )
        if getattr(unet.get_submodule(layer.name), "merged", False):  # a PEFT layer around the masked one
            raise TargetError(
                f"expected a LoRA beside the weights, {layer.name} has one fused into them, so a mask would hit both. "
                "Call unfuse_lora() first."
            )


def _is_fused(attention: nn.Module) -> bool:
    # The processor tells: `fused_projections` stays set after unfusing.
    processor = getattr(attention, "processor", None)
    if processor is not None:
        return type(processor).__name__.startswith("Fused")
    return bool(getattr(attention, "fused_projections", False))
