r"""A short roll-out: what an iterate's picture becomes, instead of what it is predicted to be.

From step t on, the predicted clean latents and noise are carried to a few of the later steps s, deterministically as DDIM
does,

.. math::
    \bar x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon, \qquad
    \hat\epsilon = (\bar x_t - \alpha_t \hat x_0) / \sigma_t,

whatever the scheduler, whose state is left alone. The last step's predicted clean latents are sharper than the first's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .stepwise import StepwiseSampler


def stops(index: int, steps: int, count: int) -> list[int]:
    """Return the steps that a roll-out from step `index` calls the U-Net at, ascending.

    Args:
        index: the step it starts from.
        steps: steps of the whole sampling.
        count: calls, spread evenly over the steps that are left; fewer where fewer are left.
    """
    left = steps - index
    return sorted({i for j in range(1, count + 1) if index < (i := index + round(j * left / (count + 1))) < steps})


def rolled_out(
    sampler: StepwiseSampler,
    output: Tensor,
    count: int,
    *,
    samples: Sequence[int] | None = None,
    gradient: str = "full",
) -> Tensor:
    """Return the clean latents (M, C, h, w) that a roll-out arrives at.

    Args:
        sampler: at the step that the roll-out starts from; it is left as it is.
        output: guided output of the U-Net there.
        count: calls of the U-Net, see `stops`; 0 gives the predicted clean latents.
        samples: numbers of the M samples; all of them if None.
        gradient: through the "full" roll-out, or "straight" past its calls, as if they did not change the latents.
    """
    index, scaled = sampler.index, sampler.scaled(samples)
    clean = first = sampler.clean_at(index, scaled, output)
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "full"):
        for stop in stops(index, len(sampler.timesteps), count):
            alpha, sigma = sampler.scales(index)
            noise = (scaled - alpha * clean) / sigma
            alpha, sigma = sampler.scales(stop)
            index, scaled = stop, alpha * clean + sigma * noise
            clean = sampler.clean_at(index, scaled, sampler.predict_at(index, scaled, samples))
    if gradient == "straight" and clean is not first:
        return first + (clean - first).detach()
    return clean
