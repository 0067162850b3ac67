"""The iterate that a search keeps of a denoising step: per sample, the best by reward or the last."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .config import SearchConfig


class BestIterates:
    """The kept iterate of each of B samples at one step.

    Args:
        count: number B of samples.
        config: settings of the search.
    """

    def __init__(self, count: int, config: SearchConfig) -> None:
        self.config = config
        self.output: Tensor | None = None
        self.masks: dict[str, Tensor] = {}
        self._highest = [-float("inf")] * count
        self._stale = [0] * count  # iterations since the highest reward

    def update(
        self, rewards: Tensor, output: Tensor, masks: dict[str, Tensor], rows: Sequence[int], active: Sequence[int]
    ) -> None:
        """Keep an iterate for the samples in which it is the best so far, or for all if the last is kept.

        Args:
            rewards: rewards (M,).
            output: guided output of the U-Net, (M, C, h, w).
            masks: masks (M, *weight.shape) by layer.
            rows: indices of the M samples; all samples at the first call.
            active: those of them that are still optimised.
        """
        row_of = {sample: row for row, sample in enumerate(rows)}
        improved = []
        for sample in active:
            reward = float(rewards[row_of[sample]])
            is_better = reward > self._highest[sample]
            self._stale[sample] = 0 if is_better else self._stale[sample] + 1
            self._highest[sample] = reward if is_better else self._highest[sample]
            if is_better or self.config.keep == "last":
                improved.append(sample)
        if self.output is None:
            self.output, self.masks = output.clone(), {name: mask.clone() for name, mask in masks.items()}
        elif improved:
            source = [row_of[sample] for sample in improved]
            self.output[improved] = output[source]
            for name, mask in masks.items():
                self.masks[name][improved] = mask[source]

    def is_finished(self, sample: int) -> bool:
        """Return whether a sample has reached the target, or has not improved for `patience` iterations.

        Args:
            sample: index of the sample.
        """
        target, patience = self.config.target_reward, self.config.patience
        has_reached = target is not None and self._highest[sample] >= target
        return has_reached or (patience is not None and self._stale[sample] >= patience)
