"""The accelerator of a run: precision, processes, and the trackers that figures are reported to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from ..errors import DataError
from .config import TrainConfig

_EXTRAS = ("tensorboard", "wandb")


def build_accelerator(pipe: Any, config: TrainConfig, folder: Path) -> Accelerator:
    """Return the run's accelerator; with several processes the pipeline moves to this one's device.

    Raises:
        DataError: a precision that does not train, or a tracker that is unknown or not installed.
    """
    if config.mixed_precision == "no" and pipe.unet.dtype == torch.float16:
        raise DataError(
            "expected a pipeline in float32 or bfloat16 to train on, got float16, in which gradients underflow; load it "
            "with dtype=torch.bfloat16 or torch.float32, or train with mixed_precision='fp16'"
        )
    if config.mixed_precision == "fp16" and pipe.unet.device.type == "cpu":
        raise DataError("expected mixed_precision 'no' or 'bf16' on a CPU, got 'fp16'")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=_tracker(config),
        project_dir=folder / "logs",
        cpu=pipe.unet.device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.num_processes > 1:
        pipe.to(accelerator.device)
    return accelerator


def _tracker(config: TrainConfig) -> str | None:
    """Return the tracker's name, checked: accelerate leaves out in silence what is not installed."""
    name = config.report_to
    if name in (None, "none"):
        return None
    known = sorted({str(kind) for kind in LoggerType} | {str(kind) for kind in LOGGER_TYPE_TO_CLASS})
    if name not in known:
        raise DataError(f"expected report_to to name a tracker ({', '.join(known)}), got {name!r}")
    built_in = {str(kind) for kind in LoggerType} - {"all"}
    if name in built_in and name not in {str(kind) for kind in get_available_trackers()}:
        package = f"'maskunet[{name}]'" if name in _EXTRAS else name.replace("_", "-")
        raise DataError(f"expected {name} for report_to={name!r}, it is not installed; pip install {package}")
    return name


def start_trackers(accelerator: Accelerator, config: TrainConfig, first: int) -> None:
    """Start the trackers of a run that goes on after step `first`."""
    if config.report_to in (None, "none"):
        return
    # Steps that a killed run had logged past its checkpoint are logged again.
    options = {"tensorboard": {"purge_step": first + 1}} if first else {}
    accelerator.init_trackers("maskunet", {k: str(v) for k, v in asdict(config).items()}, options)
