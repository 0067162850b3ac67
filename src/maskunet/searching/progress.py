"""What a search shows of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class SearchStep:
    """A search under way, right after masks were tried or a step was taken without any.

    Args:
        step: number of the denoising step, from 0.
        steps: how many there are.
        history: entries so far, as in `SearchResult.history`, this one last; to be read, not changed.
        samples: numbers of the M samples that are not yet done with the step, ascending.
        preview: returns their predicted clean pictures, (M, 3, h, w) in [0, 1], on the CPU, decoded as the reward sees
            them; to be called while the callback runs. Not calling it costs nothing.
    """

    step: int
    steps: int
    history: Sequence[dict[str, Any]]
    samples: Sequence[int]
    preview: Callable[[], Tensor]


#: Is told of every trial and every step; a true answer ends the optimising, and what was found so far is kept.
OnStep = Callable[[SearchStep], bool | None]
