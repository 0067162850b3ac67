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
    flags = [(p, p.requires_grad, p.grad) for m in parts for p in m.parameters()]
    modes = [(module, module.training) for m in parts for module in m.modules()]
    for part in parts:
        part.requires_grad_(False).eval()
    try:
        yield
    finally:
        for p, before, grad in flags:
            p.requires_grad_(before)
            p.grad = grad
        for module, mode in modes:
            module.training = mode
