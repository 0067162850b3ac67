"""Contexts that keep networks on their device, and in a precision that does not overflow, while gradients flow.

Offload moves weights as modules are called: `enable_model_cpu_offload` sends the U-Net away when the decoder runs, by
swapping the data of its parameters in place, and `enable_sequential_cpu_offload` replaces each layer's parameters after
its call. A later backward pass would use the swapped ones. So accelerate's hooks are suspended meanwhile;
the hooks themselves stay in their chain, since other wrappers look for them. diffusers' group offload also swaps data but
has no such hooks, so it is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, ModelHook, SequentialHook
from accelerate.utils import send_to_device
from torch import nn

from ..errors import DataError
from ..moving import cast, outside_inference_mode
from .supported_pipelines import is_xl


class _SuspendedHook(ModelHook):  # type: ignore[misc]
    """Stand-in for an offloading hook: it moves inputs and sends the previous model away, but keeps the weights.

    Args:
        hook: the offloading hook.
        networks: networks that stay on the device.
    """

    def __init__(self, hook: Any, networks: tuple[Any, ...]) -> None:
        self.execution_device = hook.execution_device  # pipelines read their device from it
        previous = getattr(hook, "prev_module_hook", None)
        stays = previous is not None and any(previous.model is network for network in networks)
        self.previous = None if stays else previous

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Send the previous model (a text encoder) to the CPU, and the inputs to the device.

        Args:
            module: the module that is called.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        if self.previous is not None and next(self.previous.model.parameters()).device.type != "cpu":
            self.previous.offload()
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def _flatten(hook: Any) -> list[Any]:
    return [single for h in hook.hooks for single in _flatten(h)] if isinstance(hook, SequentialHook) else [hook]


def _is_offloading(hook: Any) -> bool:
    return isinstance(hook, CpuOffload) or (isinstance(hook, AlignDevicesHook) and hook.offload)


@outside_inference_mode()
def _load_weights(module: nn.Module, hook: Any) -> None:
    """Load the weights onto the device, as the hook does before a call."""
    if not isinstance(hook, CpuOffload):
        hook.pre_forward(module)
        return
    previous, hook.prev_module_hook = hook.prev_module_hook, None  # it may be a network that stays
    try:
        hook.pre_forward(module)
    finally:
        hook.prev_module_hook = previous


@outside_inference_mode()
def _unload_weights(module: nn.Module, hook: Any) -> None:
    """Unload the weights, as they are between calls."""
    if isinstance(hook, CpuOffload):
        hook.init_hook(module)
    else:
        hook.post_forward(module, None)


def has_group_offload(module: nn.Module) -> bool:
    """Return whether diffusers offloads a module by groups of layers.

    Args:
        module: the module.
    """
    # diffusers itself looks for the hook's name.
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


def is_grouped(network: Any) -> bool:
    """Return whether diffusers offloads a network, or a part of it, by groups of layers.

    Args:
        network: a network; anything that is not a module is not.
    """
    return isinstance(network, nn.Module) and any(map(has_group_offload, network.modules()))


@contextlib.contextmanager
def without_offload(*networks: Any) -> Iterator[None]:
    """Keep networks on their execution device; afterwards they are offloaded again, by the hooks they had.

    Args:
        networks: networks, offloaded by accelerate or not; anything that is not a module is skipped.

    Raises:
        DataError: a network is offloaded by groups of layers.
    """
    modules = [m for network in networks if isinstance(network, nn.Module) for m in network.modules()]
    grouped = {type(network).__name__ for network in networks if is_grouped(network)}
    if grouped:
        raise DataError(
            f"expected {' and '.join(sorted(grouped))} without diffusers' group offload where gradients flow, since its "
            "weights leave before the gradient comes back; load the pipeline again and use "
            "pipe.enable_model_cpu_offload() to save memory"
        )
    with contextlib.ExitStack() as stack:
        for module in modules:
            hook = getattr(module, "_hf_hook", None)
            hooks = [] if hook is None else _flatten(hook)
            if not any(map(_is_offloading, hooks)):
                continue
            suspended = [_SuspendedHook(h, networks) if _is_offloading(h) else h for h in hooks]
            stack.callback(setattr, module, "_hf_hook", hook)
            module._hf_hook = suspended[0] if len(suspended) == 1 else SequentialHook(*suspended)
            for offloading in filter(_is_offloading, hooks):
                stack.callback(_unload_weights, module, offloading)
                _load_weights(module, offloading)
        yield


_upcast: WeakSet[nn.Module] = WeakSet()  # decoders inside `upcast_decoder`


@contextlib.contextmanager
def upcast_decoder(pipe: Any) -> Iterator[None]:
    """Run an autoencoder that overflows in half precision, such as SDXL's, in single precision inside the context.

    Args:
        pipe: a Stable Diffusion pipeline.
    """
    overflows = pipe.vae.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False)
    with cast(pipe.vae, torch.float32 if overflows else None):
        if overflows:
            _upcast.add(pipe.vae)
        try:
            yield
        finally:
            if overflows:
                _upcast.discard(pipe.vae)


@contextlib.contextmanager
def pipeline_precision(pipe: Any) -> Iterator[None]:
    """Run the autoencoder in the precision that the pipeline itself decodes in; only XL's pipelines upcast it.

    Args:
        pipe: a Stable Diffusion pipeline.
    """
    if is_xl(pipe):
        with upcast_decoder(pipe):
            yield
        return
    with cast(pipe.vae, torch.float16 if pipe.vae in _upcast else None):
        yield
