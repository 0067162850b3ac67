"""The optimiser, the schedule of its rate, and averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from ..errors import DataError, first_line
from .config import TrainConfig

_QUANTISED_NUMEL = 4096  # bitsandbytes keeps smaller tensors in 32 bits


def build_optimizer(parameters: list[nn.Parameter], rate: float, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW, or its 8-bit form.

    Args:
        parameters: the trained parameters.
        rate: peak learning rate, > 0.
        config: settings of the run.

    Raises:
        DataError: the 8-bit form needs bitsandbytes, which is not installed or does not support the device.
    """
    options: dict[str, Any] = {
        "lr": rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if not config.use_8bit_adam:
        # One kernel for all parameters: a mask generator has 70 M of them at SD 1.5 size.
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.AdamW(parameters, **options, fused=fused)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise DataError(
            "expected bitsandbytes for use_8bit_adam, it is not installed; pip install 'maskunet[8bit]'"
        ) from error
    devices = {p.device for p in parameters}
    try:
        for device in devices:  # the devices that it supports differ by version, and only a step shows it
            probe = nn.Parameter(torch.zeros(_QUANTISED_NUMEL, device=device))
            probe.grad = torch.zeros_like(probe)
            AdamW8bit([probe]).step()
    except Exception as error:  # a name that is not defined, a kernel that is missing
        raise DataError(
            f"expected a device that the installed bitsandbytes supports, its 8-bit Adam fails on "
            f"{', '.join(sorted(str(d) for d in devices))} ({first_line(error)}); train on a CUDA "
            "GPU, upgrade bitsandbytes, or leave use_8bit_adam out"
        ) from error
    return AdamW8bit(parameters, **options)  # type: ignore[no-any-return]


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule of the learning rate.

    Args:
        optimizer: the optimiser.
        config: settings of the run.
    """
    steps = config.max_train_steps
    if config.lr_scheduler == "polynomial" and steps == config.lr_warmup_steps:
        steps += 1  # diffusers divides by the number of steps after the warm-up
    return get_scheduler(  # type: ignore[no-any-return]
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=steps
    )


@contextlib.contextmanager
def averaged_weights(ema: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Replace the parameters by their average inside the context; do nothing without an average.

    Args:
        ema: the average, or None.
        parameters: the trained parameters.
    """
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)
