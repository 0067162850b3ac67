"""A pipeline whose parameters need no gradient for a while, and which is then as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@contextlib.contextmanager
def frozen(pipe: Any, *others: Any) -> Iterator[None]:
    """Freeze every network of a pipeline, in evaluation mode; flags, modes and gradients are put back whatever happens.

    Args:
        pipe: a Stable Diffusion pipeline; parts that it lacks are passed over.
        others: further modules to freeze.
    """
    parts = [m for n in PARTS if (m := getattr(pipe, n, None)) is not None] + list(others)
    modules = [module for m in parts for module in m.modules()]
    # By name, since offload puts other parameters into a layer's place.
    named = [(module, name, p) for module in modules for name, p in module._parameters.items() if p is not None]
    flags = [(module, name, p.requires_grad, p.grad) for module, name, p in named]
    modes = [(module, module.training) for module in modules]
    for part in parts:
        part.requires_grad_(False).eval()
    try:
        yield
    finally:
        for module, name, before, grad in flags:
            if (p := module._parameters.get(name)) is not None:
                p.requires_grad_(before)
                p.grad = grad
        for module, mode in modes:
            module.training = mode
