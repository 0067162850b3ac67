"""A context in which a pipeline's parameters need no gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


@contextlib.contextmanager
def frozen(pipe: Any, *others: Any) -> Iterator[None]:
    """Freeze every network of a pipeline, in evaluation mode; afterwards restore flags, modes and gradients.

    Args:
        pipe: a Stable Diffusion pipeline; networks that it lacks are skipped.
        others: further modules to freeze.
    """
    networks = [n for name in _NETWORKS if (n := getattr(pipe, name, None)) is not None] + list(others)
    modules = [module for network in networks for module in network.modules()]
    # By name, since offload replaces a layer's parameters.
    parameters = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
    flags = [(module, name, p.requires_grad, p.grad) for module, name, p in parameters]
    modes = [(module, module.training) for module in modules]
    for network in networks:
        network.requires_grad_(False).eval()
    try:
        yield
    finally:
        for module, name, requires_grad, grad in flags:
            if (p := module._parameters.get(name)) is not None:
                p.requires_grad_(requires_grad)
                p.grad = grad
        for module, mode in modes:
            module.training = mode
