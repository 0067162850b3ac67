"""The hook of a block: it reads the masker's inputs from the block's arguments, and refuses layers that masks would miss."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..errors import TargetError
from ..maskers import BlockInput
from ..network import BlockSpec
from ..targets import submodule
from .call import Attached
from .masked_forward import WHY_EAGER
from .replacement import follow_checkpointing, leave_checkpointing


class BlockHook:
    """Pre-forward hook of a block, which passes the block's inputs to the masker.

    Args:
        unet: the U-Net.
        block: the block.
        attachment: the attachment.
    """

    def __init__(self, unet: nn.Module, block: BlockSpec, attachment: Attached) -> None:
        self.unet, self.block, self.attachment = unet, block, attachment
        self.module = submodule(unet, block.name)
        self.parameters = list(inspect.signature(type(self.module).forward).parameters)[1:]
        self.checkpointing = [m for m in self.module.modules() if hasattr(m, "gradient_checkpointing")]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start the block.

        Args:
            module: the block's module.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        if any(m.gradient_checkpointing for m in self.checkpointing):
            follow_checkpointing(self.checkpointing, self.attachment.capture)
        if torch.compiler.is_compiling() and not self.attachment.is_traced_whole:
            self._start_eagerly(args, kwargs)
        else:
            self._start(args, kwargs)

    @torch.compiler.disable(reason=WHY_EAGER)
    def _start_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._start(args, kwargs)

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.attachment.call
        if not self.attachment.enabled or call is None:
            return
        refuse_fused(self.unet, self.block)
        arguments = dict(zip(self.parameters, args, strict=False)) | kwargs
        skips = arguments.get("res_hidden_states_tuple")
        skip = skips[-1] if skips else None
        inputs = BlockInput(arguments["hidden_states"], skip, arguments["temb"], call.timestep)
        self.attachment.start_block(self.block.name, inputs)

    def remove(self) -> None:
        """Restore gradient checkpointing."""
        leave_checkpointing(self.checkpointing)


def refuse_fused(unet: nn.Module, block: BlockSpec) -> None:
    """Refuse layers that a mask would miss or change wrongly.

    Args:
        unet: the U-Net.
        block: a block with its masked layers.

    Raises:
        TargetError: its projections, or a LoRA of one of its layers, are fused.
    """
    for layer in block.layers:
        attention = layer.name.rpartition(".to_")[0]
        if attention and _is_fused(unet.get_submodule(attention)):
            raise TargetError(
                f"expected separate to_q, to_k and to_v, {attention} has fused projections, which masks do not reach. "
                "Call unfuse_qkv_projections() first."
            )
        if getattr(unet.get_submodule(layer.name), "merged", False):  # a PEFT layer around the masked one
            raise TargetError(
                f"expected a LoRA beside the weights, {layer.name} has one fused into them, so a mask would hit both. "
                "Call unfuse_lora() first."
            )


def _is_fused(attention: nn.Module) -> bool:
    # The processor decides, since `fused_projections` stays set after unfusing.
    processor = getattr(attention, "processor", None)
    if processor is not None:
        return type(processor).__name__.startswith("Fused")
    return bool(getattr(attention, "fused_projections", False))
