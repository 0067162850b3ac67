r"""The logits of a search and their ascent: a set of logits a sample, drawn to masks, improved by AdamW.

.. math:: S_b \leftarrow \mathrm{AdamW}(S_b, \nabla_{S_b} R_b)

Samples share tensors, (B, *weight.shape) a layer, and nothing else: each has its own noise, optimiser state and gradient
scale, so that one that rests is as if it had been searched alone.
"""

from __future__ import annotations

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
        shapes = {layer.name: (len(self.seeds), *layer.shape) for layer in network.layers}
        self.logits = {
            name: torch.full(shape, config.initial_logit, device=device, requires_grad=True)
            for name, shape in shapes.items()
        }
        # Half-precision gradients of a reward underflow unless they are scaled; Adam does not see the scale.
        self._scales = [1024.0 if half else 1.0] * len(self.seeds)
        self._rows: list[int] = []
        self._leaves: list[Tensor] = []
        self._grads: list[Tensor | None] = []

    def restart(self) -> None:
        """Set every logit back to its start and forget the optimiser's state."""
        with torch.no_grad():
            for logits in self.logits.values():
                logits.fill_(self.config.initial_logit)
        # Views of the logits: a sample without a gradient is passed over, its count of steps as well.
        self._views = [[logits.detach()[i] for logits in self.logits.values()] for i in range(len(self.seeds))]
        rate, decay = self.config.learning_rate, self.config.weight_decay
        self._optimizer = torch.optim.AdamW(
            [v for views in self._views for v in views], lr=rate, weight_decay=decay, fused=True
        )

    def draw(self, index: int, k: int, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return masks (len(rows), *weight.shape) of each layer, with their gradient.

        Args:
            index: denoising step.
            k: iteration within it.
            rows: the samples, ascending.
        """
        self._rows, self._grads = list(rows), []
        every = len(self._rows) == len(self.seeds)
        leaves = {n: s if every else s.detach()[self._rows].requires_grad_(True) for n, s in self.logits.items()}
        self._leaves = list(leaves.values())
        return {name: self._mask(name, logits, index, k) for name, logits in leaves.items()}

    def _mask(self, name: str, logits: Tensor, index: int, k: int) -> Tensor:
        if not self.config.gumbel:
            return threshold(logits, self.config.tau)
        seeds = [derive_seed(self.seeds[i], "search", index, k, name) for i in self._rows]
        noise = torch.stack([gumbel_noise(tuple(logits.shape[1:]), s, device=logits.device) for s in seeds])
        return gumbel_sigmoid(logits, noise, self.config.tau)

    def differentiate(self, rewards: Tensor, active: Sequence[int]) -> None:
        """Take the gradients of the rewards (len(rows),) of the latest draw, for the samples that are not done.

        They go to the logits alone: whatever else the reward is made of keeps its own gradients.
        """
        places = [self._rows.index(i) for i in active]
        loss = -(rewards[places] * rewards.new_tensor([self._scales[i] for i in active])).sum()
        self._grads = list(torch.autograd.grad(loss, self._leaves, allow_unused=True))

    def improve(self, active: Sequence[int]) -> None:
        """Take a step on the logits of the given samples by the gradients that `differentiate` took.

        Raises:
            RewardError: no gradient came, or one that is not finite in full precision.
        """
        grads = [g for g in self._grads if g is not None]
        if not grads:
            raise RewardError("expected the reward to depend on the masks, no gradient reached them")
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
