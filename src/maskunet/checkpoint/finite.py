"""Find tensors that hold NaN or Inf, which a comparison with a threshold would hide: NaN compares as "off"."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or Inf; None if all are finite.

    Args:
        tensors: tensors by name; those of whole numbers and those on the meta device hold neither.
    """
    # One flag per device, so that a GPU is waited for once and not for every tensor.
    checked = {name: t for name, t in tensors.items() if t.is_floating_point() and not t.is_meta}
    flags = {name: torch.isfinite(tensor.detach()).all() for name, tensor in checked.items()}
    by_device: dict[torch.device, list[Tensor]] = {}
    for flag in flags.values():
        by_device.setdefault(flag.device, []).append(flag)
    if all(bool(torch.stack(of_device).all()) for of_device in by_device.values()):
        return None
    return next(name for name, flag in flags.items() if not flag)


def require_finite(tensors: Mapping[str, Tensor], owner: str, remedy: str) -> None:
    """Refuse tensors that hold NaN or Inf.

    Args:
        tensors: tensors by name.
        owner: what holds them, for the error.
        remedy: what to do, for the error.

    Raises:
        CheckpointError: one of them is not finite; it is named.
    """
    if (name := first_not_finite(tensors)) is not None:
        raise CheckpointError(f"expected finite numbers in {owner}, tensor {name!r} holds NaN or Inf; {remedy}")
