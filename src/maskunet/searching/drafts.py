"""Noises worth starting from: several a prompt, each with a draft of its picture, and the best draft by reward.

What a picture is composed of is decided by its noise, and masks hardly change it. A draft takes the first few steps and a
short roll-out from there, fewer calls than half a picture, and tells noises apart nearly as well as pictures do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..relaxation import derive_seed
from ..rewards.base import Reward
from .config import SearchConfig
from .rollout import rolled_out
from .sampling import StepwiseSampler

#: Calls of a draft's roll-out.
_ROLLOUT = 3


def candidates(seeds: Sequence[int], j: int) -> list[int]:
    """Return the seeds of candidate j; candidate 0 has the given ones."""
    return list(seeds) if j == 0 else [derive_seed(s, "candidate", j) % 2**31 for s in seeds]


@torch.no_grad()
def best_drafts(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    config: SearchConfig,
    decoder: Any = None,
    *,
    progress: bool = False,
    **options: Any,
) -> list[int]:
    """Return for each prompt the seed of the noise whose draft has the highest reward.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompts: B captions.
        seeds: a seed for each, the first candidate's.
        reward: what drafts are compared by.
        config: gives `candidates`, `draft_steps` and `preview_size`.
        decoder: see `search`.
        progress: show a progress bar.
        options: of `StepwiseSampler`.
    """
    best, chosen = torch.full((len(prompts),), -float("inf")), list(seeds)
    for j in tqdm(range(config.candidates), "drafts", disable=not progress, leave=False):
        tried = candidates(seeds, j)
        sampler = StepwiseSampler(pipe, prompts, seeds=tried, **options)
        steps = min(config.draft_steps, len(sampler.timesteps))
        while sampler.index + 1 < steps:
            sampler.advance(sampler.predict())
        clean = rolled_out(sampler, sampler.predict(), _ROLLOUT)
        found = reward(sampler.preview(clean, config.preview_size, decoder), prompts).float().cpu()
        for i in (found > best).nonzero().flatten().tolist():
            best[i], chosen[i] = found[i], tried[i]
    return chosen
