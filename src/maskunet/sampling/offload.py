"""Networks that stay on their device while gradients go through them.

Offload moves weights as modules are called: `enable_model_cpu_offload` sends the U-Net away when the decoder runs, by
swapping the data of its parameters in place, and `enable_sequential_cpu_offload` replaces each layer's parameters after
its call. A backward pass comes later and finds the swapped ones elsewhere. So accelerate's hooks are suspended meanwhile;
they themselves stay where they are, since other wrappings look for them. diffusers' group offload, which swaps data as well
and has no such hooks, is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, ModelHook, SequentialHook
from accelerate.utils import send_to_device
from torch import nn

from ..errors import DataError


class _Resident(ModelHook):  # type: ignore[misc]
    """What stands in for an offloading hook: inputs still travel, and what ran before still makes room."""

    def __init__(self, hook: Any, parts: tuple[Any, ...]) -> None:
        self.execution_device = hook.execution_device  # where a pipeline looks for its device
        former = getattr(hook, "prev_module_hook", None)
        self.former = None if former is None or any(former.model is part for part in parts) else former

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Send the model before (a text encoder) back to the CPU, and the inputs to the device."""
        if self.former is not None and next(self.former.model.parameters()).device.type != "cpu":
            self.former.offload()
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def _single(hook: Any) -> list[Any]:
    return [one for h in hook.hooks for one in _single(h)] if isinstance(hook, SequentialHook) else [hook]


def _offloads(hook: Any) -> bool:
    return isinstance(hook, CpuOffload) or (isinstance(hook, AlignDevicesHook) and hook.offload)


def _bring(module: nn.Module, hook: Any) -> None:
    """Put the weights in place, as the hook itself would before a call."""
    if not isinstance(hook, CpuOffload):
        hook.pre_forward(module)
        return
    former, hook.prev_module_hook = hook.prev_module_hook, None  # it may be another one that is to stay
    try:
        hook.pre_forward(module)
    finally:
        hook.prev_module_hook = former


def _send_back(module: nn.Module, hook: Any) -> None:
    """Take the weights away, as they are between calls."""
    if isinstance(hook, CpuOffload):
        hook.init_hook(module)
    else:
        hook.post_forward(module, None)


def _in_groups(module: nn.Module) -> bool:
    """Whether diffusers offloads it by groups of layers; told by the hook's name, as diffusers itself does."""
    chain = getattr(module, "_diffusers_hook", None)
    return chain is not None and chain.get_hook("group_offloading") is not None


@contextlib.contextmanager
def without_offload(*parts: Any) -> Iterator[None]:
    """Keep networks on their execution device; afterwards they are offloaded again, by the hooks they had.

    Args:
        parts: networks, offloaded by accelerate or not; whatever is no module is passed over.

    Raises:
        DataError: a network is offloaded by groups of layers.
    """
    modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
    grouped = {type(p).__name__ for p in parts if isinstance(p, nn.Module) and any(map(_in_groups, p.modules()))}
    if grouped:
        raise DataError(
            f"expected {' and '.join(sorted(grouped))} without diffusers' group offload where gradients go through them, "
            "since its weights leave before the gradient comes back; load the pipeline again and use "
            "pipe.enable_model_cpu_offload() to save memory"
        )
    with contextlib.ExitStack() as after:
        for module in modules:
            hook = getattr(module, "_hf_hook", None)
            offloading = [h for h in _single(hook) if _offloads(h)] if hook is not None else []
            if not offloading:
                continue
            held = [_Resident(h, parts) if _offloads(h) else h for h in _single(hook)]
            after.callback(setattr, module, "_hf_hook", hook)
            module._hf_hook = held[0] if len(held) == 1 else SequentialHook(*held)
            for one in offloading:
                after.callback(_send_back, module, one)
                _bring(module, one)
        yield


@contextlib.contextmanager
def upcast_decoder(pipe: Any) -> Iterator[None]:
    """Run an autoencoder that overflows in half precision, as SDXL's, in single precision inside the context."""
    upcast = pipe.vae.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False)
    try:
        if upcast:
            pipe.vae.to(torch.float32)
        yield
    finally:
        if upcast:
            pipe.vae.to(torch.float16)
