"""The accelerator of a run: precision, processes and trackers."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from ..errors import DataError, SettingError
from .config import TrainConfig

_EXTRAS = ("tensorboard", "wandb")


def resolve_precision(pipe: Any, config: TrainConfig) -> TrainConfig:
    """Return the settings with the precision that this pipeline trains in.

    `mixed_precision` "auto" becomes "bf16", "fp16" or "no"; `allow_tf32` is False without a CUDA GPU.

    Args:
        pipe: the pipeline; device and dtype of its U-Net decide.
        config: settings of the run.

    Raises:
        DataError: a U-Net in float16 without mixed precision.
        SettingError: "fp16" on a CPU.
    """
    device, dtype = pipe.unet.device.type, pipe.unet.dtype
    precision = config.mixed_precision
    if precision == "auto" and device == "cuda":
        computes_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        is_bf16 = dtype == torch.bfloat16 or (computes_bf16 and dtype != torch.float16)
        precision = "bf16" if is_bf16 else "fp16"
    elif precision == "auto":
        precision = "no"
    if precision == "fp16" and device == "cpu":
        raise SettingError("expected mixed_precision 'no', 'bf16' or 'auto' on a CPU, got 'fp16'")
    if precision == "no" and dtype == torch.float16:
        remedy = "" if device == "cpu" else ", or train with mixed_precision='fp16'"
        raise DataError(
            "expected a pipeline in float32 or bfloat16 to train on, got float16, in which gradients underflow; load it "
            f"with dtype=torch.bfloat16 or torch.float32{remedy}"
        )
    return replace(config, mixed_precision=precision, allow_tf32=config.allow_tf32 and device == "cuda")


@contextlib.contextmanager
def tf32_products(device: torch.device, allow: bool) -> Iterator[None]:
    """Set whether CUDA computes float32 matrix products in TF32; the former setting returns at the end.

    Args:
        device: device of the run; nothing is set elsewhere than on CUDA.
        allow: whether to use TF32.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    backend = getattr(matmul, "fp32_precision", None)  # PyTorch's newer name for the same; it refuses to mix the two
    former: str | None = None
    is_allowed = False
    with contextlib.suppress(RuntimeError):  # raised where the user has set the newer one
        former, is_allowed = torch.get_float32_matmul_precision(), matmul.allow_tf32
    if former is None:
        matmul.fp32_precision = "tf32" if allow else "ieee"
    elif is_allowed != allow:
        torch.set_float32_matmul_precision("high" if allow else "highest")
    try:
        yield
    finally:
        if former is not None:
            torch.set_float32_matmul_precision(former)
        if backend is not None:
            matmul.fp32_precision = backend


def build_accelerator(pipe: Any, config: TrainConfig, folder: Path) -> Accelerator:
    """Return the run's accelerator; with several processes the pipeline moves to this process's device.

    Args:
        pipe: the pipeline.
        config: settings of the run, with a resolved precision.
        folder: the run's folder; trackers write to `logs/` in it.

    Raises:
        SettingError: a tracker that is unknown or not installed, or a process group that was closed.
    """
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    if PartialState._shared_state.get("backend") and not dist.is_initialized():
        # A second one would find the addresses of the first in the launcher's store.
        raise SettingError(
            "expected an open process group, the launcher's was closed; train before you call Accelerator.end_training or "
            "torch.distributed.destroy_process_group"
        )
    atexit.unregister(_close_group)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=_tracker_name(config),
        project_dir=folder / "logs",
        cpu=pipe.unet.device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.num_processes > 1:
        pipe.to(accelerator.device)
    return accelerator


def end_run(accelerator: Accelerator) -> None:
    """Finish the trackers of a run that succeeded.

    Its process group stays open until this process ends, for further runs and for a caller who opened it. After a failure
    nothing closes it, since closing may wait for other processes.

    Args:
        accelerator: the run's accelerator.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.num_processes > 1:
        atexit.register(_close_group)


def _close_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _tracker_name(config: TrainConfig) -> str | None:
    """Return the tracker's name, checked, since accelerate silently drops trackers that are not installed."""
    name = config.report_to
    if name in (None, "none"):
        return None
    known = sorted({str(kind) for kind in LoggerType} | {str(kind) for kind in LOGGER_TYPE_TO_CLASS})
    if name not in known:
        raise SettingError(f"expected report_to to name a tracker ({', '.join(known)}), got {name!r}")
    built_in = {str(kind) for kind in LoggerType} - {"all"}
    if name in built_in and name not in {str(kind) for kind in get_available_trackers()}:
        package = f"'maskunet[{name}]'" if name in _EXTRAS else name.replace("_", "-")
        raise SettingError(f"expected {name} for report_to={name!r}, it is not installed; pip install {package}")
    return name


@contextlib.contextmanager
def finished_trackers(accelerator: Accelerator) -> Iterator[None]:
    """Close the run's trackers if the context ends by an error; without one, `end_run` closes them.

    Args:
        accelerator: the run's accelerator.
    """
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise


def start_trackers(accelerator: Accelerator, config: TrainConfig, steps_done: int) -> None:
    """Start the run's trackers.

    Args:
        accelerator: the run's accelerator.
        config: settings of the run.
        steps_done: steps that were trained before; 0 for a fresh run.
    """
    if config.report_to in (None, "none"):
        return
    # A killed run may have logged steps past its last checkpoint; they are logged again.
    options = {"tensorboard": {"purge_step": steps_done + 1}} if steps_done else {}
    accelerator.init_trackers("maskunet", {k: str(v) for k, v in asdict(config).items()}, options)
