"""What a run changes and puts back: masker and adapters of a pipeline, and the shared state of accelerate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from ..attaching import attachment_of, reattach


@contextlib.contextmanager
def kept_accelerate_state() -> Iterator[None]:
    """Give a run an accelerator of its own; afterwards those of the user have their precision and accumulation again.

    Accelerators of a process share their state. With several processes, their process group is shared in any case.
    """
    shared = [AcceleratorState._shared_state, GradientState._shared_state, PartialState._shared_state]
    former = [dict(state) for state in shared]
    # The state of a group that was closed stays too: it is refused, since it cannot be opened again.
    is_distributed = _has_group() or bool(PartialState._shared_state.get("backend"))
    for state in shared[:2] if is_distributed else shared:
        state.clear()
    try:
        yield
    finally:
        # A group that this run has opened stays open for further ones.
        count = 2 if _has_group() else 3
        for state, values in zip(shared[:count], former[:count], strict=True):
            state.clear()
            state.update(values)


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextlib.contextmanager
def restored_pipeline(pipe: Any) -> Iterator[None]:
    """Restore the attached masker and the active adapters of a pipeline at the end.

    Args:
        pipe: a Stable Diffusion pipeline.
    """
    attachment = attachment_of(pipe)
    adapters = [
        (layer, list(layer.active_adapters), layer._disable_adapters, dict(layer.scaling))
        for layer in pipe.unet.modules()
        if is_adapted(layer)
    ]
    try:
        yield
    finally:
        reattach(pipe, attachment)
        for layer, active, is_off, scaling in adapters:
            layer._active_adapter, layer._disable_adapters = active, is_off
            layer.scaling = scaling


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is PEFT's wrapper of a layer.

    Args:
        module: the module.
    """
    return hasattr(module, "active_adapters") and hasattr(module, "scaling") and hasattr(module, "base_layer")


def remove_empty_adapters(unet: nn.Module) -> None:
    """Replace PEFT's wrappers that have no adapter left by the layers in them.

    Args:
        unet: the U-Net.
    """
    for name, module in list(unet.named_modules()):
        if is_adapted(module) and not module.scaling:
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, module.base_layer)
