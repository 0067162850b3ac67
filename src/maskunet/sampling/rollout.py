r"""Short roll-outs: a better prediction of an iterate's final image than one call gives.

From step t on, the predicted clean latents and noise are carried to a few of the later steps s, deterministically as in
DDIM,

.. math::
    \bar x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon, \qquad
    \hat\epsilon = (\bar x_t - \alpha_t \hat x_0) / \sigma_t,

for any scheduler, whose state does not change. The last step's predicted clean latents are sharper than the first's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .stepwise import StepwiseSampler


def rollout_steps(index: int, total: int, count: int) -> list[int]:
    """Return the steps at which a roll-out calls the U-Net, ascending.

    Args:
        index: step that the roll-out starts from.
        total: number of denoising steps.
        count: calls, spread evenly over the remaining steps; fewer where fewer steps remain.
    """
    remaining = total - index
    steps = {index + round(j * remaining / (count + 1)) for j in range(1, count + 1)}
    return sorted(step for step in steps if index < step < total)


def roll_out(sampler: StepwiseSampler, output: Tensor, count: int, *, samples: Sequence[int] | None = None) -> Tensor:
    """Return the clean latents (M, C, h, w) at the end of a roll-out, float32; gradients flow.

    Args:
        sampler: sampler at the step that the roll-out starts from; it is not changed.
        output: guided output of the U-Net there, (M, C, h, w).
        count: calls of the U-Net, see `rollout_steps`; 0 returns the predicted clean latents.
        samples: indices of the M samples, ascending; all if None.
    """
    index, dtype = sampler.index, output.dtype
    # In half precision the noise of late steps, a small difference of large numbers, would be lost.
    scaled = sampler.scaled_latents(samples).float()
    clean = sampler.pred_x0_at(index, scaled, output.float())
    for step in rollout_steps(index, len(sampler.timesteps), count):
        alpha, sigma = sampler.scales(index)
        noise = (scaled - alpha * clean) / sigma
        alpha, sigma = sampler.scales(step)
        index, scaled = step, alpha * clean + sigma * noise
        output = sampler.predict_at(index, scaled.to(dtype), samples)
        clean = sampler.pred_x0_at(index, scaled, output.float())
    return clean
