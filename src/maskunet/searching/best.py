"""What a search keeps of a step: each sample's best iterate by reward, or the last."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .config import SearchConfig


class BestIterates:
    """What a step keeps of each of B samples: the best iterate by reward, or the last.

    Args:
        count: B.
        config: settings of the search.
    """

    def __init__(self, count: int, config: SearchConfig) -> None:
        self.config = config
        self.output: Tensor | None = None
        self.masks: dict[str, Tensor] = {}
        self._highest = [-float("inf")] * count
        self._stale = [0] * count

    def offer(
        self, rewards: Tensor, output: Tensor, masks: dict[str, Tensor], rows: Sequence[int], active: Sequence[int]
    ) -> None:
        """Take an iterate for the samples in which it is the best so far, or for all where the last is kept.

        Args:
            rewards: (len(rows),).
            output: guided output of the U-Net, (len(rows), C, h, w).
            masks: by layer, (len(rows), *weight.shape).
            rows: the samples; all of them at the first call.
            active: those of them still being searched.
        """
        taken = []
        for i in active:
            reward = float(rewards[list(rows).index(i)])
            is_better = reward > self._highest[i]
            self._stale[i] = 0 if is_better else self._stale[i] + 1
            self._highest[i] = reward if is_better else self._highest[i]
            if is_better or self.config.keep == "last":
                taken.append(i)
        if self.output is None:
            self.output, self.masks = output.clone(), {name: mask.clone() for name, mask in masks.items()}
        elif taken:
            places = [list(rows).index(i) for i in taken]
            self.output[taken] = output[places]
            for name, mask in masks.items():
                self.masks[name][taken] = mask[places]

    def is_finished(self, sample: int) -> bool:
        """Return whether a sample has reached the target, or has not improved for `patience` iterations.

        Args:
            sample: its number.
        """
        target, patience = self.config.target_reward, self.config.patience
        reached = target is not None and self._highest[sample] >= target
        return reached or (patience is not None and self._stale[sample] >= patience)
