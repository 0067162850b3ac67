"""The forwards that replace those of a U-Net and of its masked layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..network import LayerSpec
from ..quantised import is_quantised, run_dequantised
from .call import Attached

#: A part compiled by itself cannot read the state of the call, which the thread of the eager U-Net holds.
WHY_EAGER = (
    "masks run eagerly where a part of the U-Net is compiled; compile the whole U-Net, or leave out fullgraph=True"
)


class _Forward:
    """A forward in the place of a module's own; a copy of the module has its own copy of it.

    Args:
        attachment: the attachment.
        original: the module's own forward.
    """

    def __init__(self, attachment: Attached, original: Callable[..., Any]) -> None:
        self.attachment, self.original = attachment, original

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy it together with its attachment and module; `__reduce__` serves pickle alone."""
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce__(self) -> Any:
        """Refuse to be pickled.

        Raises:
            TargetError: always.
        """
        raise TargetError(
            "expected a U-Net without masks to pickle; call maskunet.detach first, and save the masker by save_pretrained"
        )


class MaskedUNetForward(_Forward):
    """The forward of a U-Net: it starts a call, however the U-Net is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the U-Net in the state of a new call."""
        attachment = self.attachment
        # Decided in this frame: torch.compile enters functions that an eager frame calls, each as a graph of its own.
        was_traced = attachment.is_traced_whole
        attachment.is_traced_whole = was_traced or torch.compiler.is_compiling()
        try:
            if not attachment.enabled:
                return self.original(*args, **kwargs)
            sample = kwargs["sample"] if "sample" in kwargs else args[0]
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            outer, attachment.call = attachment.call, attachment.start_call(sample, timestep)
            try:
                return self.original(*args, **kwargs)
            finally:
                attachment.call = outer
        finally:
            attachment.is_traced_whole = was_traced


class MaskedLayerForward(_Forward):
    """The forward of a masked layer.

    Args:
        attachment: the attachment.
        layer: the layer.
        module: its module.
        original: the module's own forward.
    """

    def __init__(
        self, attachment: Attached, layer: LayerSpec, module: nn.Module, original: Callable[..., Any]
    ) -> None:
        super().__init__(attachment, original)
        self.layer, self.module = layer, module

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer with masks, or plainly where they are disabled or no call of the U-Net is under way."""
        if torch.compiler.is_compiling() and not self.attachment.is_traced_whole:
            return self._run_eagerly(x, *args, **kwargs)
        return self._run(x, *args, **kwargs)

    @torch.compiler.disable(reason=WHY_EAGER)
    def _run_eagerly(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._run(x, *args, **kwargs)

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        attachment, module, name = self.attachment, self.module, self.layer.name
        call = attachment.call
        if not attachment.enabled or call is None or not call.masks_layer(name):
            return self.original(x, *args, **kwargs)
        if not is_quantised(module):
            return attachment.run(self.layer, module, x)
        if call.masks[name].strength == 0:
            return self.original(x, *args, **kwargs)  # its own kernels round in their own way
        return run_dequantised(module, x, lambda plain, inputs: attachment.run(self.layer, plain, inputs))
