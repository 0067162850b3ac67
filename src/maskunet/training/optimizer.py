"""The optimiser, and the averaged weights that stand in for the trained ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ..errors import DataError
from .config import TrainConfig


def build_optimizer(parameters: list[nn.Parameter], rate: float, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW, or its 8-bit form.

    Raises:
        DataError: the 8-bit form is asked for and bitsandbytes is not installed.
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
        raise DataError("expected bitsandbytes for 8-bit Adam; pip install 'maskunet[8bit]', on a GPU") from error
    return AdamW8bit(parameters, **options)  # type: ignore[no-any-return]


@contextlib.contextmanager
def averaged(ema: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Put the averaged weights in place inside the context; nothing without an average."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)
