"""Everything that a run changes while it trains, and that a checkpoint therefore holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ..errors import SettingError
from .base import Method
from .config import TrainConfig
from .optimizer import build_optimizer, build_schedule


@dataclass
class TrainingState:
    """The trained parameters, with optimiser, schedule, average and loss scaler.

    Randomness needs no state: it follows from the run's seed and the step's number.

    Args:
        named: the trained parameters by name.
        optimizer: AdamW.
        schedule: schedule of the learning rate.
        ema: exponential moving average of the parameters, or None.
        scaler: loss scaler of fp16, or None.
    """

    named: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    ema: EMAModel | None
    scaler: Any

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return list(self.named.values())

    def load(self, saved: dict[str, Any] | None) -> int:
        """Restore a saved state.

        Args:
            saved: what `to_save` returned, or None for a fresh run.

        Returns:
            The number of steps that are done.
        """
        if saved is None:
            return 0
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(saved["trained"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        # A schedule depends on the number of steps, which may have changed.
        rates = zip(self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, peak, factor in rates:
            group["lr"] = peak * factor(self.schedule.last_epoch)
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
            # It keeps the tensors that it is given, and those of a checkpoint are on the CPU.
            pairs = zip(self.ema.shadow_params, self.parameters, strict=True)
            self.ema.shadow_params = [average.to(parameter.device) for average, parameter in pairs]
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        return int(saved["step"])

    def to_save(self, step: int) -> dict[str, Any]:
        """Return the state as a checkpoint holds it.

        Args:
            step: number of steps that are done.
        """
        state: dict[str, Any] = {
            "trained": {name: parameter.detach() for name, parameter in self.named.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": step,
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        return state


def build_state(trained: nn.Module, method: Method, config: TrainConfig, scaler: Any) -> TrainingState:
    """Return the state of a fresh run.

    Args:
        trained: the module that the method returned; those of its parameters that require gradients are trained.
        method: the method.
        config: settings of the run.
        scaler: loss scaler of fp16, or None.

    Raises:
        SettingError: no parameter requires a gradient.
        DataError: the optimiser does not run here.
    """
    named = {name: parameter for name, parameter in trained.named_parameters() if parameter.requires_grad}
    if not named:
        raise SettingError(
            f"expected a method with trainable parameters, {method.name!r} has 0 parameters that require gradients"
        )
    parameters = list(named.values())
    rate = method.learning_rate if config.learning_rate is None else config.learning_rate
    optimizer = build_optimizer(parameters, rate, config)
    schedule = build_schedule(optimizer, config)
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=False) if config.use_ema else None
    return TrainingState(named, optimizer, schedule, ema, scaler)
