r"""The logits of a search and their ascent: a set of logits a sample, drawn to masks, improved by AdamW.

.. math:: S_b \leftarrow \mathrm{AdamW}(S_b, \nabla_{S_b} R_b)

Samples share tensors, (B, *weight.shape) a layer, and nothing else: each has its own noise, optimiser state and gradient
scale, so that one that rests is as if it had been searched alone. Structured logits are smaller parts that broadcast to
that shape and add up; noise is drawn for each weight whatever the structure.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RewardError
from ..relaxation import derive_seed, gumbel_noise, gumbel_sigmoid, threshold
from ..targets import Network
from .config import SearchConfig

logger = logging.getLogger(__name__)


class Ascent:
    """Logits of every target layer, a set a sample.

    Args:
        network: the layers.
        seeds: a seed for each of B samples; its noise follows from it.
        config: settings of the search.
        device: where the logits are.
        half: some network on the gradient's way computes in float16.
        reward: what errors call the reward.
    """

    def __init__(
        self,
        network: Network,
        seeds: Sequence[int],
        config: SearchConfig,
        *,
        device: torch.device,
        half: bool,
        reward: str,
    ) -> None:
        self.seeds, self.config, self.reward = list(seeds), config, reward
        self._shapes = {layer.name: layer.shape for layer in network.layers}
        self.logits = {
            name: [
                torch.zeros((len(self.seeds), *part), device=device, requires_grad=True)
                for part in parts(shape, config.structure)
            ]
            for name, shape in self._shapes.items()
        }
        # Half-precision gradients of a reward underflow unless they are scaled; Adam does not see the scale.
        self._scales = [1024.0 if half else 1.0] * len(self.seeds)
        self._rows: list[int] = []
        self._drawn: dict[str, list[Tensor]] = {}
        self._grads: list[Tensor | None] = []

    def restart(self, index: int = 0) -> None:
        """Set every logit back to its start at step `index` and forget the optimiser's state."""
        with torch.no_grad():
            for name, logits in self.logits.items():
                for j, part in enumerate(logits):
                    # The first part holds the level; what is added to it starts from 0.
                    part.fill_(0.0 if j else self.config.initial_logit)
                    if self.config.initial_spread:
                        part += self.config.initial_spread * self._normal(part, index, name, j)
        # Views of the logits: a sample without a gradient is passed over, its count of steps as well.
        every = [part for logits in self.logits.values() for part in logits]
        self._views = [[part.detach()[i] for part in every] for i in range(len(self.seeds))]
        rate, decay = self.config.learning_rate, self.config.weight_decay
        self._optimizer = torch.optim.AdamW(
            [v for views in self._views for v in views], lr=rate, weight_decay=decay, fused=True
        )

    def _normal(self, part: Tensor, *key: object) -> Tensor:
        """Normal noise, each sample's from its own seed."""
        made = []
        for seed in self.seeds:
            generator = torch.Generator(part.device).manual_seed(derive_seed(seed, "start", *key))
            made.append(torch.randn(part.shape[1:], generator=generator, device=part.device))
        return torch.stack(made)

    def draw(self, index: int, k: int, rows: Sequence[int], number: int = 0) -> dict[str, Tensor]:
        """Return masks (len(rows), *weight.shape) of each layer, with their gradient.

        Args:
            index: denoising step.
            k: iteration within it.
            rows: the samples, ascending.
            number: which of the draws of this iteration; gradients of all of them are averaged.
        """
        if not number:
            self._rows, self._grads = list(rows), []
            every = len(self._rows) == len(self.seeds)
            self._drawn = {
                name: [s if every else s.detach()[self._rows].requires_grad_(True) for s in logits]
                for name, logits in self.logits.items()
            }
        return {name: self._mask(name, logits, index, k, number) for name, logits in self._drawn.items()}

    def _mask(self, name: str, logits: Sequence[Tensor], index: int, k: int, number: int) -> Tensor:
        scores, shape = functools.reduce(torch.add, logits), self._shapes[name]
        if not self.config.gumbel:
            return threshold(scores, self.config.tau).expand(-1, *shape)
        more = (number,) if number else ()
        seeds = [derive_seed(self.seeds[i], "search", index, k, name, *more) for i in self._rows]
        noise = torch.stack([gumbel_noise(shape, s, device=scores.device) for s in seeds])
        return gumbel_sigmoid(scores, noise, self.config.tau)

    def differentiate(self, rewards: Tensor, active: Sequence[int]) -> None:
        """Take the gradients of the rewards (len(rows),) of the latest draw, for the samples that are not done.

        They go to the logits alone: whatever else the reward is made of keeps its own gradients.
        """
        places = [self._rows.index(i) for i in active]
        scales = rewards.new_tensor([self._scales[i] / self.config.draws for i in active])
        leaves = [part for logits in self._drawn.values() for part in logits]
        if not rewards.requires_grad:
            raise RewardError(f"expected reward {self.reward!r} to depend on the masks, it has no gradient")
        loss = -(rewards[places] * scales).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        self._grads = [_sum(a, b) for a, b in zip(self._grads, found, strict=True)] if self._grads else list(found)

    def improve(self, active: Sequence[int]) -> None:
        """Take a step on the logits of the given samples by the gradients that `differentiate` took.

        Raises:
            RewardError: no gradient came, or one that is not finite in full precision.
        """
        grads = [g for g in self._grads if g is not None]
        if not grads:
            raise RewardError(
                f"expected reward {self.reward!r} to depend on the masks, no gradient reached them; is it computed from the "
                "picture, without detaching it?"
            )
        finite = torch.stack([torch.isfinite(g).flatten(1).all(1) for g in grads]).all(0).tolist()
        scales = grads[0].new_tensor([self._scales[i] for i in self._rows])
        for g in grads:
            g /= _as_rows(scales, g)
        if self.config.max_grad_norm is not None:
            norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
            shrink = (self.config.max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1)
            for g in grads:
                g *= _as_rows(shrink, g)
        for i in active:
            place = self._rows.index(i)
            if finite[place]:
                for view, grad in zip(self._views[i], self._grads, strict=True):
                    # Batched products give transposed gradients, and the fused AdamW reads memory as it lies.
                    view.grad = None if grad is None else grad[place].contiguous()
            else:
                self._lower_scale(i)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _lower_scale(self, sample: int) -> None:
        if self._scales[sample] <= 1:
            raise RewardError(
                f"expected finite gradients of reward {self.reward!r}, got others; try float32, or bfloat16"
            )
        self._scales[sample] /= 16
        logger.warning("gradients of sample %d overflowed; scaled down to %g", sample, self._scales[sample])


def parts(shape: tuple[int, ...], structure: str) -> list[tuple[int, ...]]:
    """Return the shapes of the logits of a weight of this shape: parts that broadcast to it and add up.

    Args:
        shape: of the weight, (O, I) or (O, I, kh, kw).
        structure: of `SearchConfig`.
    """
    ones = (1,) * len(shape)
    row, column = (shape[0], *ones[1:]), (1, shape[1], *ones[2:])
    return {"free": [shape], "row": [row], "column": [column], "rows-and-columns": [row, column], "layer": [ones]}[
        structure
    ]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


class Best:
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
        """Take what is better, or whatever comes where the last is kept.

        Args:
            rewards: (len(rows),).
            output: guided output of the U-Net, (len(rows), C, h, w).
            masks: by layer, (len(rows), *weight.shape).
            rows: the samples; all of them at the first call.
            active: those of them that are not done.
        """
        taken = []
        for i in active:
            found = float(rewards[list(rows).index(i)])
            better = found > self._highest[i]
            self._stale[i] = 0 if better else self._stale[i] + 1
            self._highest[i] = found if better else self._highest[i]
            if better or self.config.keep == "last":
                taken.append(i)
        if self.output is None:
            self.output, self.masks = output.clone(), {n: m.clone() for n, m in masks.items()}
        elif taken:
            places = [list(rows).index(i) for i in taken]
            self.output[taken] = output[places]
            for name, mask in masks.items():
                self.masks[name][taken] = mask[places]

    def done(self, sample: int) -> bool:
        """Whether a sample has reached the target or has not got better for as long as the patience is."""
        target, patience = self.config.target_reward, self.config.patience
        reached = target is not None and self._highest[sample] >= target
        return reached or (patience is not None and self._stale[sample] >= patience)
