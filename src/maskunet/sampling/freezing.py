"""Contexts in which a pipeline's parameters need no gradient, and in which it checkpoints its gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import DataError

_CHECKPOINT = "_gradient_checkpointing_func"
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


@contextlib.contextmanager
def frozen(pipe: Any, *others: Any) -> Iterator[None]:
    """Freeze every network of a pipeline, in evaluation mode; afterwards restore flags, modes and gradients.

    Args:
        pipe: a Stable Diffusion pipeline; networks that it lacks are skipped.
        others: further modules to freeze.

    Raises:
        DataError: a parameter was created in `torch.inference_mode`, so that no gradient can pass it.
    """
    networks = [n for name in _NETWORKS if (n := getattr(pipe, name, None)) is not None] + list(others)
    _refuse_inference_tensors(networks)
    modules = [module for network in networks for module in network.modules()]
    # By name, since offload replaces a layer's parameters.
    parameters = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
    flags = [(module, name, p.requires_grad, p.grad) for module, name, p in parameters]
    modes = [(module, module.training) for module in modules]
    for network in networks:
        network.requires_grad_(False).eval()
    for _, _, parameter in parameters:
        parameter.grad = None  # else a method that trains them would add to it
    try:
        yield
    finally:
        for module, name, requires_grad, grad in flags:
            if (p := module._parameters.get(name)) is not None:
                p.requires_grad_(requires_grad)
                p.grad = grad
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def checkpointed(*networks: Any) -> Iterator[None]:
    """Checkpoint the gradients of networks inside the context; afterwards restore every module's own setting.

    Args:
        networks: networks of diffusers.
    """
    modules = [m for network in networks for m in network.modules() if hasattr(m, "gradient_checkpointing")]
    former = [(m, m.gradient_checkpointing, m.__dict__.get(_CHECKPOINT)) for m in modules]
    for network in networks:
        network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module, is_on, function in former:
            module.gradient_checkpointing = is_on
            if function is not None:
                # An attached masker wraps the function at its calls, and unwraps it when it is detached.
                setattr(module, _CHECKPOINT, getattr(function, "followed", function))
            elif _CHECKPOINT in module.__dict__:
                delattr(module, _CHECKPOINT)


def _refuse_inference_tensors(networks: Sequence[Any]) -> None:
    for network in networks:
        for name, parameter in network.named_parameters():
            if parameter.is_inference():
                raise DataError(
                    f"expected networks that gradients can pass, {name} of {type(network).__name__} was created in "
                    "torch.inference_mode; load it, or move it to its device, outside of that mode"
                )
