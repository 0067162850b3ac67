"""`maskunet train --dry-run`: what a run would cost."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from ..distributed import process_rank
from ..training import TrainConfig, train


def dry_run_training(pipe: Any, method: Any, data: Any, config: TrainConfig, reward: Any) -> None:
    """Take three steps in a temporary folder, and print what the run would cost.

    Args:
        pipe: the pipeline.
        method: the training method.
        data: the latents to train on.
        config: settings of the run.
        reward: reward of objective "reward", or None.
    """
    trial = replace(
        config, max_train_steps=3, validation_samples=0, validation_rewards=0, validation_prompts=(), report_to=None
    )
    is_cuda = pipe.unet.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        warm_up = replace(trial, max_train_steps=1)
        train(pipe, method, data, warm_up, Path(folder) / "warm", reward=reward, progress=False)
        start = time.monotonic()
        train(pipe, method, data, trial, Path(folder) / "run", reward=reward, progress=False)
        step_s = (time.monotonic() - start) / 3
    if process_rank()[0] != 0:
        return
    if is_cuda:
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process"
    typer.echo(
        f"dry run: {len(data)} samples; {step_s:.2f} s per step, so {config.max_train_steps} steps take about "
        f"{step_s * config.max_train_steps / 3600:.2f} h; at most {memory}. Nothing was written."
    )
