"""Which implementation of an operator runs: chosen by device and size, or forced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from .triton_linear import available, supports

#: "reference" makes a layer's masks for the whole batch; "tiled" makes them sample by sample, in tiles that stay in
#: cache; "triton" makes them inside the product, on a GPU.
IMPLEMENTATIONS = ("auto", "reference", "tiled", "triton")
#: Masked weights of a batch, above which samples are taken one by one; 4 Mi numbers are 16 MiB of masks.
BATCHED_WEIGHTS = 1 << 22
#: Weights of a layer, from which samples are taken one by one where factors learn, which is faster from 640 x 640 on.
LEARNED_WEIGHTS = 1 << 18
VARIABLE = "MASKUNET_OPERATORS"

_forced: str | None = None


def _checked(name: str, source: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"expected {source} to be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Force an implementation inside the context; "auto" chooses again.

    Outside, the environment variable MASKUNET_OPERATORS forces one.

    Raises:
        ValueError: there is no such implementation.
    """
    global _forced
    before, _forced = _forced, _checked(name, "the implementation")
    try:
        yield
    finally:
        _forced = before


def choose(x: Tensor, weight: Tensor, sets: int, learns: bool = False) -> str:
    """Return the implementation for inputs x, a weight and so many masks of it, which are learned or not.

    Raises:
        ValueError: Triton is forced where it cannot run, or the environment variable names no implementation.
    """
    name = _forced or _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
    if name == "triton" and not available(x.device):
        raise ValueError(
            f"expected Triton and a GPU for the forced implementation 'triton', got {x.device}; pip install triton, or "
            "use 'auto'"
        )
    if name != "auto":
        return name
    # A compiler fuses the reference by itself.
    if torch.compiler.is_compiling():
        return "reference"
    if available(x.device) and supports(x, weight):
        return "triton"
    large = weight.numel() * sets > BATCHED_WEIGHTS or (learns and sets > 1 and weight.numel() >= LEARNED_WEIGHTS)
    return "tiled" if large else "reference"
