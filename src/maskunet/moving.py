"""Create, move and cast tensors that outlive the call as ordinary ones, also under `torch.inference_mode`.

A tensor that is created in inference mode takes no gradient for good. A module that is moved or cast there gets such
tensors as parameters, so a masker, an autoencoder or a U-Net could not be trained afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode inside the context, without recording gradients; do nothing outside of it."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def cast(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Cast a module inside the context; afterwards every parameter and buffer has its dtype again.

    Args:
        module: the module.
        dtype: the dtype to cast to; None casts nothing.
    """
    if dtype is None:
        yield
        return
    # By tensor, since an autoencoder may keep some layers in another precision than the others.
    former = [(m, name, t.dtype) for m in module.modules() for name, t in _tensors(m).items()]
    with outside_inference_mode():
        module.to(dtype)
    try:
        yield
    finally:
        with outside_inference_mode():
            for owner, name, former_dtype in former:
                tensor = _tensors(owner).get(name)
                if tensor is not None and tensor.dtype != former_dtype:
                    tensor.data = tensor.data.to(former_dtype)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    both = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in both.items() if tensor is not None}
