"""One stage of a recipe: a seeded training loop that says how long it takes and resumes where it was stopped.

The data of a step depends on the stage's seed and the step's number alone, so an interrupted run and an uninterrupted
one see the same batches.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageConfig:
    """How one stage trains.

    Args:
        steps: optimiser steps.
        batch_size: samples a step.
        learning_rate: peak rate of AdamW.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the rate falls to 2 % on a cosine; it is constant before, so
            that a run can be given another length until then.
        ema_decay: decay of the exponential moving average of the weights; 0 keeps none.
        max_grad_norm: gradients are clipped to this norm.
        seed: seed of the batches and of all noise.
        save_every_s: seconds between checkpoints.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    decay: float = 1.0
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    save_every_s: float = 60.0


def _rate(step: int, config: StageConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    flat = _flat(config)
    done = max(0, step - flat) / max(1, config.steps - flat)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _flat(config: StageConfig) -> int:
    """First step at which the rate falls."""
    return max(config.warmup, round(config.steps * (1 - config.decay)))


def _save(state: Mapping[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    part.replace(path)


def run_stage(
    name: str,
    modules: nn.ModuleDict,
    loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    config: StageConfig,
    folder: Path,
    *,
    progress: bool = True,
) -> nn.ModuleDict:
    """Train `modules` to the end of a stage and return them with their averaged weights.

    Args:
        name: the stage's name; its files are `<name>.pt` (the run) and `<name>.jsonl` (the log).
        modules: what trains.
        loss: the loss of one batch, drawn with the generator it is given, and figures to log.
        config: how to train.
        folder: where the run is kept; a run found there goes on.
        progress: show a progress bar with the time left.

    Raises:
        CheckpointError: the run in `folder` was made with other settings.
    """
    path = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    average = {k: v.detach().clone() for k, v in modules.state_dict().items()} if config.ema_decay else {}
    settings = {k: v for k, v in vars(config).items() if k != "save_every_s"}
    first = 0
    if path.exists():
        try:
            state = torch.load(path, weights_only=True)
            before = dict(state["settings"])
        except Exception as error:  # a damaged file can raise anything from the unpickler
            raise CheckpointError(
                f"expected the state of a run in {path}, could not read it ({type(error).__name__}); delete it"
            ) from error
        if state["step"] <= min(_flat(config), _flat(StageConfig(**before))):
            before["steps"] = config.steps
        if before != settings:
            raise CheckpointError(
                f"{path} holds a run with other settings ({state['settings']}) than asked for ({settings}). "
                "Choose another folder or delete that file."
            )
        modules.load_state_dict(state["modules"])
        average = state["average"]
        first = state["step"]
        if first < config.steps:
            optimizer.load_state_dict(state["optimizer"])
            logger.info("%s: resumed at step %d of %d", name, first, config.steps)

    def checkpoint(step: int) -> None:
        state = {"modules": modules.state_dict(), "average": average, "step": step, "settings": settings}
        if step < config.steps:
            state["optimizer"] = optimizer.state_dict()
        _save(state, path)

    saved = time.monotonic()
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, desc=name, disable=not progress)
    modules.train()
    for step in bar:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        value, figures = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), config.max_grad_norm)
        optimizer.step()
        if average:
            # A short memory at first, so that the average is not held back by the random start.
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for key, tensor in modules.state_dict().items():
                    if tensor.is_floating_point():
                        average[key].lerp_(tensor, 1 - decay)
                    else:
                        average[key].copy_(tensor)
        if step % 50 == 49 or step + 1 == config.steps:
            shown = {"loss": float(value.detach()), **figures}
            bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()})
            with (folder / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, **shown}) + "\n")
        if time.monotonic() - saved > config.save_every_s:
            checkpoint(step + 1)
            saved = time.monotonic()
    checkpoint(config.steps)
    if average:
        modules.load_state_dict(average)
    return modules.eval()
