"""Seed PyTorch's global random generators for a while, and leave them as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def kept_generators(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Keep the global generators of the CPU and of one device as they are; yield a function that seeds both.

    `torch.manual_seed` would seed the generators of all devices, also those that are not restored.

    Args:
        device: the device whose generator is used beside the CPU's.
    """
    module: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    # Only CUDA and devices like it have one generator per index.
    index = () if getattr(module, "default_generators", None) is None else (device,)
    cpu_state = torch.get_rng_state()
    device_state = None if module is None else module.get_rng_state(*index)

    def seed(value: int) -> None:
        torch.default_generator.manual_seed(value)
        if index:
            module.default_generators[module.current_device() if device.index is None else device.index].manual_seed(
                value
            )
        elif module is not None:
            module.manual_seed(value)

    try:
        yield seed
    finally:
        torch.set_rng_state(cpu_state)
        if module is not None:
            module.set_rng_state(device_state, *index)
