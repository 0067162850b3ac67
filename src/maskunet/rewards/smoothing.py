"""A reward that a picture has to keep when it is moved, blurred and made noisy a little.

A gradient finds pictures that please one network at one place; the mean over such copies has fewer of them. Left and right
stay as they are, so that captions that tell places hold for every copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RewardError
from .base import Reward


class Smoothed(Reward):
    """The mean of a reward over a picture and altered copies of it, the same alterations at every call.

    Args:
        reward: the reward.
        copies: pictures that it is computed for, >= 1; the first is the picture itself.
        shift: largest shift, as a share of a side; what moves in is the border's colour.
        noise: standard deviation of the noise that is added.
        blur: every other copy is averaged over 3 x 3 pixels.
        seed: picks shifts and noise.

    Raises:
        RewardError: no copy, or a shift or noise below 0.
    """

    def __init__(
        self,
        reward: Reward,
        copies: int = 4,
        *,
        shift: float = 0.04,
        noise: float = 0.03,
        blur: bool = True,
        seed: int = 0,
    ) -> None:
        if copies < 1 or shift < 0 or noise < 0:
            raise RewardError(
                f"expected at least one copy, shift and noise of at least 0, got {copies}, {shift} and {noise}"
            )
        self.reward, self.copies, self.seed = reward, copies, seed
        self.shift, self.noise, self.blur = shift, noise, blur
        self.name = f"{reward.name}, smoothed"
        self.models, self.heads = reward.models, reward.heads

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the mean (B,) over the copies."""
        found = [self.reward(self._copy(pictures, j), prompts) for j in range(self.copies)]
        return torch.stack(found).mean(0)

    def _copy(self, pictures: Tensor, j: int) -> Tensor:
        if not j:
            return pictures
        generator = torch.Generator().manual_seed(self.seed + j)
        size = pictures.shape[-2:]
        down, right = (round(float(torch.rand((), generator=generator) * 2 - 1) * self.shift * n) for n in size)
        noise = self.noise * torch.randn(pictures.shape[1:], generator=generator)
        pad = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
        moved = F.pad(pictures, pad, mode="replicate")[..., max(-down, 0) :, max(-right, 0) :]
        moved = moved[..., : size[0], : size[1]]
        if self.blur and j % 2:
            moved = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return (moved + noise.to(moved)).clamp(0, 1)
