"""The implementation that an operator runs: chosen by device and size, or forced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import SettingError
from .triton_launch import available
from .triton_linear import supports

#: "reference" computes a layer's masks for the whole batch; "tiled" sample by sample, in tiles that stay in cache;
#: "triton" inside the product, on a GPU.
IMPLEMENTATIONS = ("auto", "reference", "tiled", "triton")
#: Masked weights of a batch above which the tiled implementation is faster; 4 Mi numbers are 16 MiB of masks.
BATCHED_WEIGHTS = 1 << 22
#: Weights of a layer from which it is faster where factors are trained: 640 x 640 and larger.
TRAINED_WEIGHTS = 1 << 18
#: Environment variable that forces an implementation.
VARIABLE = "MASKUNET_OPERATORS"

_forced: str | None = None


def _checked(name: str, source: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise SettingError(f"expected {source} to be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Force an implementation inside the context.

    Outside a context, the environment variable MASKUNET_OPERATORS forces one.

    Args:
        name: one of `IMPLEMENTATIONS`; "auto" chooses by device and size.

    Raises:
        SettingError: there is no such implementation.
    """
    global _forced
    previous, _forced = _forced, _checked(name, "the implementation")
    try:
        yield
    finally:
        _forced = previous


def choose_implementation(x: Tensor, weight: Tensor, num_masks: int, is_trained: bool = False) -> str:
    """Return the implementation for a layer.

    Args:
        x: its inputs (B, ..., I).
        weight: its weight (O, I).
        num_masks: number of its masks M.
        is_trained: whether the factors of its masks need gradients.

    Raises:
        SettingError: Triton is forced where it cannot run, or the environment variable names no implementation.
    """
    name = _forced or _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
    if name == "triton" and not available(x.device):
        raise SettingError(
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
    trains_large_layer = is_trained and num_masks > 1 and weight.numel() >= TRAINED_WEIGHTS
    return "tiled" if trains_large_layer or weight.numel() * num_masks > BATCHED_WEIGHTS else "reference"
