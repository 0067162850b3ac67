"""The history of a search: one entry per evaluation of its masks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any


class SearchHistory:
    """Entries of a search, as in `SearchResult.history`.

    Args:
        count: number B of samples.
        started: time of `time.monotonic` that entries count their seconds from.
    """

    def __init__(self, count: int, started: float) -> None:
        self.entries: list[dict[str, Any]] = []
        self._count, self._started = count, started

    def add(
        self,
        step: int,
        timestep: float,
        iteration: int,
        rewards: Mapping[int, float],
        densities: Mapping[int, float],
    ) -> None:
        """Add an entry.

        Args:
            step: index of the denoising step.
            timestep: its timestep.
            iteration: iteration within the step.
            rewards: rewards by sample; NaN where none was computed. Samples that have left the step are missing.
            densities: kept fractions by sample.
        """
        values = [rewards.get(i, math.nan) for i in range(self._count)]
        self.entries.append(
            {
                "step": step,
                "timestep": timestep,
                "iteration": iteration,
                "reward": [value if math.isfinite(value) else None for value in values],  # JSON has no NaN
                "density": [densities.get(i) for i in range(self._count)],
                "seconds": time.monotonic() - self._started,
            }
        )

    def latest(self) -> dict[str, str]:
        """Return the mean of the latest rewards and of the latest densities, as text for a progress bar."""
        # The last iterate of a step may be kept without a reward.
        rewards = (text for entry in reversed(self.entries) if (text := _mean(entry["reward"])) != "-")
        return {"reward": next(rewards, "-"), "density": _mean(self.entries[-1]["density"])}


def _mean(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{sum(numbers) / len(numbers):.4f}" if numbers else "-"
