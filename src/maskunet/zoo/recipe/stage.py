"""One stage of the recipe: a seeded training loop that shows the time left and resumes after an interruption.

The data of a step depends on the stage's seed and the step's number only, so interrupted and uninterrupted runs use the same
batches.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...errors import CheckpointError
from ...files import save_whole

logger = logging.getLogger(__name__)

#: Figures of a step by name, for the log.
Figures = dict[str, float]
#: The loss of one batch, drawn with the step's generator, and its figures.
Loss = Callable[[torch.Generator], tuple[Tensor, Figures]]


@dataclass(frozen=True)
class StageConfig:
    """Settings of one stage.

    Main:
        steps: optimiser steps.
        batch_size: samples per step.
        learning_rate: peak rate of AdamW.
        seed: seed of the batches and of all noise.

    Fine-tuning:
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the rate falls to 2 % on a cosine. The rate is constant before, so
            until then a run can be continued with another number of steps.
        ema_decay: decay of the exponential moving average of the weights; 0 for no average.
        max_grad_norm: largest norm of the gradients, which are clipped.
        weight_decay: weight decay of AdamW.
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


def _rate_factor(step: int, config: StageConfig) -> float:
    """Return the learning rate of a step, as a share of the peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    start = _decay_start(config)
    progress = max(0, step - start) / max(1, config.steps - start)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _decay_start(config: StageConfig) -> int:
    """Return the first step at which the rate falls."""
    return max(config.warmup, round(config.steps * (1 - config.decay)))


def run_stage(
    name: str, modules: nn.ModuleDict, loss: Loss, config: StageConfig, folder: Path, *, progress: bool = True
) -> nn.ModuleDict:
    """Train modules to the end of a stage and return them with their averaged weights.

    Args:
        name: name of the stage; its files are `<name>.pt` (the run) and `<name>.jsonl` (the log).
        modules: the trained modules.
        loss: returns the loss of a batch drawn with a generator, and figures for the log.
        config: settings of the stage.
        folder: folder of the run; a run in it is continued.
        progress: show a progress bar with the time left.

    Raises:
        CheckpointError: the run in `folder` is unreadable or has other settings.
        DataError: the run cannot be written.
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
            previous = dict(state["settings"])
        except Exception as error:  # a damaged file can raise anything from the unpickler
            raise CheckpointError(
                f"expected the state of a run in {path}, could not read it ({type(error).__name__}); delete it"
            ) from error
        if state["step"] <= min(_decay_start(config), _decay_start(StageConfig(**previous))):
            previous["steps"] = config.steps
        if previous != settings:
            raise CheckpointError(
                f"expected {path} to hold a run with the settings {settings}, it has other settings "
                f"({state['settings']}); choose another folder or delete that file"
            )
        modules.load_state_dict(state["modules"])
        average = state["average"]
        first = state["step"]
        if first < config.steps:
            optimizer.load_state_dict(state["optimizer"])
            logger.info("%s: resumed at step %d of %d", name, first, config.steps)

    def save_checkpoint(step: int) -> None:
        state = {"modules": modules.state_dict(), "average": average, "step": step, "settings": settings}
        if step < config.steps:
            state["optimizer"] = optimizer.state_dict()
        save_whole(path, lambda part: torch.save(state, part))

    saved_s = time.monotonic()
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, desc=name, disable=not progress)
    modules.train()
    for step in bar:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate_factor(step, config)
        value, figures = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), config.max_grad_norm)
        optimizer.step()
        if average:
            # A short memory at first, so that the random start does not hold the average back.
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for key, tensor in modules.state_dict().items():
                    if tensor.is_floating_point():
                        average[key].lerp_(tensor, 1 - decay)
                    else:
                        average[key].copy_(tensor)
        if step % 50 == 49 or step + 1 == config.steps:
            row = {"loss": float(value.detach()), **figures}
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items()})
            with (folder / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, **row}) + "\n")
        if time.monotonic() - saved_s > config.save_every_s:
            save_checkpoint(step + 1)
            saved_s = time.monotonic()
    save_checkpoint(config.steps)
    if average:
        modules.load_state_dict(average)
    return modules.eval()
