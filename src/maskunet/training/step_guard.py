"""Steps without a finite loss or gradient: they are skipped and counted, and stop a run in which they go on.

A NaN in one step of Adam makes the parameters NaN for good, and NaN logits give a mask like any other. So no step is taken
on such numbers. In fp16 the loss scaler finds the largest scale by overflowing: infinite gradients of a finite loss are its
ordinary search as long as the scale is above 1, and are not counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..checkpoint import first_not_finite
from ..errors import DataError
from .checkpoints import Checkpoints

logger = logging.getLogger(__name__)

#: A run stops after this many bad steps in a row. A bad sample passes in one or two; a run that has diverged stays bad.
SKIPPED_IN_A_ROW = 10


class StepGuard:
    """Take the optimiser's steps, except those without a finite loss or gradient.

    Args:
        accelerator: the run's accelerator.
        optimizer: the prepared optimiser.
        named: the trained parameters by name.
        checkpoints: the run's folder, for errors.
    """

    def __init__(
        self, accelerator: Accelerator, optimizer: Any, named: Mapping[str, Tensor], checkpoints: Checkpoints
    ) -> None:
        self.accelerator, self.optimizer, self.named, self.checkpoints = accelerator, optimizer, named, checkpoints
        #: Number of bad steps, in the whole run and since the latest good one.
        self.skipped, self.in_a_row = 0, 0

    def load(self, saved: Mapping[str, Any] | None) -> None:
        """Restore the counts.

        Args:
            saved: a checkpoint's state, or None for a fresh run.
        """
        counts = (saved or {}).get("skipped_steps", (0, 0))
        self.skipped, self.in_a_row = (int(count) for count in counts)

    def to_save(self) -> dict[str, Any]:
        """Return the counts as a checkpoint holds them."""
        return {"skipped_steps": (self.skipped, self.in_a_row)}

    def take_step(self, number: int, loss: float, gradient_norm: float) -> None:
        """Take a step of the optimiser, or skip it.

        Args:
            number: number of the step, from 1.
            loss: loss of the step, over all processes.
            gradient_norm: norm of its gradients.

        Raises:
            DataError: it is the last of `SKIPPED_IN_A_ROW` bad steps, or a parameter is not finite.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.optimizer.step()
            self.in_a_row = 0
            return
        self.optimizer.optimizer._opt_called = True  # else PyTorch warns that the rate's schedule goes on without it
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        if scaler is not None:
            scaler.update()  # halves the scale where gradients overflowed
        self.require_finite_parameters(number)
        if math.isfinite(loss) and scale > 1:
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.accelerator.is_main_process:
            logger.warning("skipped step %d: loss %g, norm of its gradients %g", number, loss, gradient_norm)
        if self.in_a_row >= SKIPPED_IN_A_ROW:
            raise DataError(
                f"expected a finite loss and finite gradients, step {number} was the last of {SKIPPED_IN_A_ROW} steps in a "
                f"row without (loss {loss:g}, norm of the gradients {gradient_norm:g}); {self._last_checkpoint()}. Lower "
                "the learning rate or look at the data."
            )

    def require_finite_parameters(self, number: int) -> None:
        """Refuse to go on with parameters that hold NaN or Inf.

        Args:
            number: number of the step, from 1.

        Raises:
            DataError: a parameter is not finite; it is named.
        """
        if (name := first_not_finite(self.named)) is not None:
            raise DataError(
                f"expected finite parameters, {name!r} holds NaN or Inf at step {number}; {self._last_checkpoint()}. Lower "
                "the learning rate or raise adam_epsilon."
            )

    def _last_checkpoint(self) -> str:
        saved = self.checkpoints.saved()
        return f"the last good checkpoint {saved[-1]} is intact" if saved else "no checkpoint was due yet"


def finite_figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a step as a log can hold them; JSON has neither NaN nor Inf.

    Args:
        entry: figures by name.
    """
    return {name: value for name, value in entry.items() if math.isfinite(value)}
