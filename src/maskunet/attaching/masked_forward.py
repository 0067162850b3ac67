"""The forwards that replace those of a U-Net and of its masked layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from ..errors import TargetError
from ..network import LayerSpec
from .call import Attached


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
        if not attachment.enabled:
            return self.original(*args, **kwargs)
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        outer, attachment.call = attachment.call, attachment.start_call(sample, timestep)
        try:
            return self.original(*args, **kwargs)
        finally:
            attachment.call = outer


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
        attachment = self.attachment
        call = attachment.call
        if attachment.enabled and call is not None and call.masks_layer(self.layer.name):
            return attachment.run(self.layer, self.module, x)
        return self.original(x, *args, **kwargs)
