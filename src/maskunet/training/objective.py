r"""The loss of a batch: the errors of the network's predictions, reward, and the penalty on the density.

.. math::
    L = w_d\,E[w_t\,e_t] - w_r\,E[R] + w_\rho\,(E[P(m = 1)] - \rho)^2

with the errors :math:`e_t` of `prediction_errors`. The reward is there in objective "reward", the last term with a target
density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion import snr_weights
from .base import Method
from .batches import Batch
from .config import TrainConfig
from .prediction_errors import PredictionErrors
from .reward_objective import RewardObjective


class Objective(nn.Module):
    """Errors, expected density and rewards of a batch.

    The trained parameters are the module's only ones, so that DDP averages just their gradients. Errors of no weight are not
    computed, unless a target density needs the masks of that call.

    Args:
        trained: the module with the trained parameters.
        prediction_errors: errors of the network's predictions.
        method: the method.
        rewards: the reward objective, or None.
    """

    def __init__(
        self, trained: nn.Module, prediction_errors: PredictionErrors, method: Method, rewards: RewardObjective | None
    ) -> None:
        super().__init__()
        self.trained = trained
        self._parts = (prediction_errors, method, rewards)

    def forward(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return errors (B,), the mean P(keep) (), and rewards (`reward_batch_size`,), each None where it is not used.

        Args:
            batch: the batch.
        """
        prediction_errors, method, rewards = self._parts
        errors: Tensor | None = None
        density: Tensor | None = None
        if rewards is None or rewards.config.diffusion_weight or rewards.config.target_density is not None:
            errors = prediction_errors(batch)
            density = method.expected_density()  # before the reward's samples, whose calls have other masks
        if rewards is None:
            return errors, density, None
        count = rewards.config.reward_batch_size
        return errors, density, rewards(batch.captions[:count], batch.seeds[:count])


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch.

    Args:
        loss: diffusion loss and reward, ().
        penalty: penalty on the density, (), or None.
        figures: figures for the log.
    """

    loss: Tensor
    penalty: Tensor | None
    figures: dict[str, float]

    def total(self) -> Tensor:
        """Return what is minimised, ()."""
        return self.loss if self.penalty is None else self.loss + self.penalty


def weigh_losses(
    errors: Tensor | None,
    density: Tensor | None,
    rewards: Tensor | None,
    timesteps: Tensor,
    scheduler: Any,
    config: TrainConfig,
) -> BatchLoss:
    """Return the loss of a batch from what `Objective` returned.

    Args:
        errors: squared prediction errors (B,), or None.
        density: mean P(keep), (), or None.
        rewards: rewards, or None.
        timesteps: training timesteps (B,).
        scheduler: the noise schedule of training.
        config: settings of the run.
    """
    figures: dict[str, float] = {}
    loss = torch.zeros((), device=timesteps.device)
    if errors is not None:
        weights = snr_weights(scheduler, timesteps, config.snr_gamma) if config.snr_gamma else 1.0
        loss = (errors * weights).mean()
    if rewards is not None:
        figures["reward"] = float(rewards.detach().mean())
        loss = config.diffusion_weight * loss - config.reward_weight * rewards.mean()
    if config.target_density is None or density is None:
        return BatchLoss(loss, None, figures)
    figures["expected_density"] = float(density.detach())
    penalty = config.density_weight * (density - config.target_density).square()
    return BatchLoss(loss, penalty, figures)
