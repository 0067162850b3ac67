"""The state of a running search, for callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class SearchState:
    """A running search, right after an iteration or after a step without iterations.

    Args:
        step: index of the denoising step, from 0.
        steps: number of denoising steps.
        history: entries so far, as in `SearchResult.history`, the latest one last; read only.
        samples: indices of the M samples that have not left the step, ascending.
        preview: returns their predicted clean images, (M, 3, h, w) in [0, 1], on the CPU, decoded as the reward sees
            them. Call it only inside the callback; it costs nothing unless called.
    """

    step: int
    steps: int
    history: Sequence[dict[str, Any]]
    samples: Sequence[int]
    preview: Callable[[], Tensor]


#: Called at every iteration and every step; true ends the optimisation, and the masks so far are kept.
StepCallback = Callable[[SearchState], bool | None]
