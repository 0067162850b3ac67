r"""The logits of a search and their optimiser: one set per sample, drawn as masks, improved by AdamW.

.. math:: S_b \leftarrow \mathrm{AdamW}(S_b, \nabla_{S_b} R_b)

Samples share tensors, (B, *weight.shape) per layer, and nothing else: each has its own noise, optimiser state and gradient
scale, so a sample gets the same masks in any batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RewardError
from ..network import Network
from ..relaxation import derive_seed, gumbel_noise, gumbel_sigmoid, threshold
from .config import SearchConfig

logger = logging.getLogger(__name__)

_HALF_PRECISION_SCALE = 1024.0


class LogitOptimizer:
    """Logits of every target layer for each of B samples, with an optimiser whose state is per sample.

    Args:
        network: the target layers.
        seeds: one seed per sample; its noise follows from it.
        config: settings of the search.
        device: device of the logits.
        scale_gradients: scale gradients up, since a network that they flow through computes in float16.
        reward_name: name of the reward, for errors.
    """

    def __init__(
        self,
        network: Network,
        seeds: Sequence[int],
        config: SearchConfig,
        *,
        device: torch.device,
        scale_gradients: bool,
        reward_name: str,
    ) -> None:
        self.seeds, self.config, self.reward_name = list(seeds), config, reward_name
        self._shapes = {layer.name: layer.shape for layer in network.layers}
        self.logits = {
            name: torch.zeros((len(self.seeds), *shape), device=device, requires_grad=True)
            for name, shape in self._shapes.items()
        }
        # Half-precision gradients of a reward underflow unless they are scaled up; they are scaled back before AdamW.
        self._scales = [_HALF_PRECISION_SCALE if scale_gradients else 1.0] * len(self.seeds)
        self._rows: list[int] = []
        self._drawn: dict[str, Tensor] = {}
        self._grads: list[Tensor | None] = []

    def restart(self) -> None:
        """Reset every logit to its initial value, and the optimiser."""
        with torch.no_grad():
            for logits in self.logits.values():
                logits.fill_(self.config.initial_logit)
        # Views of the logits: a sample without a gradient is skipped, and so is its step count.
        self._views = [[logits.detach()[i] for logits in self.logits.values()] for i in range(len(self.seeds))]
        self._optimizer = torch.optim.AdamW(
            [view for views in self._views for view in views],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def draw(self, step: int, iteration: int, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return masks (M, *weight.shape) by layer, with their gradient.

        Args:
            step: index of the denoising step.
            iteration: iteration within the step.
            rows: indices of the M samples, ascending.
        """
        self._rows, self._grads = list(rows), []
        is_full_batch = len(self._rows) == len(self.seeds)
        self._drawn = {
            name: logits if is_full_batch else logits.detach()[self._rows].requires_grad_(True)
            for name, logits in self.logits.items()
        }
        return {name: self._mask(name, logits, step, iteration) for name, logits in self._drawn.items()}

    def _mask(self, name: str, logits: Tensor, step: int, iteration: int) -> Tensor:
        if not self.config.gumbel:
            return threshold(logits, self.config.tau)
        shape = self._shapes[name]
        seeds = [derive_seed(self.seeds[i], "search", step, iteration, name) for i in self._rows]
        noise = torch.stack([gumbel_noise(shape, seed, device=logits.device) for seed in seeds])
        return gumbel_sigmoid(logits, noise, self.config.tau)

    def differentiate(self, rewards: Tensor, active: Sequence[int]) -> None:
        """Compute the gradients of the latest draw's rewards.

        They go to the logits alone: other parameters that the reward depends on keep theirs.

        Args:
            rewards: rewards (M,) of the samples last drawn.
            active: indices of the samples that are still optimised.

        Raises:
            RewardError: the rewards do not depend on the masks.
        """
        active_rows = [self._rows.index(i) for i in active]
        scales = rewards.new_tensor([self._scales[i] for i in active])
        if not rewards.requires_grad:
            raise RewardError(
                f"expected reward {self.reward_name!r} to depend on the masks, its values have no gradient"
            )
        loss = -(rewards[active_rows] * scales).sum()
        self._grads = list(torch.autograd.grad(loss, list(self._drawn.values()), allow_unused=True))

    def improve(self, active: Sequence[int]) -> None:
        """Take an optimiser step by the gradients of `differentiate`.

        Args:
            active: indices of the samples that are still optimised.

        Raises:
            RewardError: no gradient reached the masks, or one is not finite in full precision.
        """
        grads = [g for g in self._grads if g is not None]
        if not grads:
            raise RewardError(
                f"expected reward {self.reward_name!r} to depend on the masks, no gradient reached them; compute it "
                "from the images, without detaching them"
            )
        is_finite = torch.stack([torch.isfinite(g).flatten(1).all(1) for g in grads]).all(0).tolist()
        scales = grads[0].new_tensor([self._scales[i] for i in self._rows])
        for g in grads:
            g /= scales.view(-1, *[1] * (g.ndim - 1))
        for i in active:
            row = self._rows.index(i)
            if is_finite[row]:
                for view, grad in zip(self._views[i], self._grads, strict=True):
                    # Batched products return transposed gradients; the fused AdamW ignores strides.
                    view.grad = None if grad is None else grad[row].contiguous()
            else:
                self._lower_scale(i)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _lower_scale(self, sample: int) -> None:
        if self._scales[sample] <= 1:
            raise RewardError(
                f"expected finite gradients of reward {self.reward_name!r}, got others; try float32 or bfloat16"
            )
        self._scales[sample] /= 16
        logger.warning("gradients of sample %d overflowed; scaled down to %g", sample, self._scales[sample])
