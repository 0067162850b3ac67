"""Noises worth starting from: several a prompt, each with a draft of its picture, and the best draft by reward.

What a picture is composed of is decided by its noise, and masks hardly change it. A draft takes the first fifth of the steps
and a short roll-out from there, which tells noises apart for a part of a picture's calls. Where a scheduler adds noise of
its own at every step (DDPM, Euler ancestral) the draft goes on without, so it says less of the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..relaxation import derive_seed
from ..rewards.base import Reward
from ..sampling.rollout import rolled_out
from ..sampling.stepwise import StepwiseSampler
from .config import SearchConfig

#: A draft takes one of so many of the picture's steps, and so many calls of a roll-out.
_PART, _ROLLOUT = 5, 3


def candidates(seeds: Sequence[int], j: int) -> list[int]:
    """Return the seeds of candidate j; candidate 0 has the given ones."""
    return list(seeds) if j == 0 else [derive_seed(s, "candidate", j) % 2**31 for s in seeds]


@torch.no_grad()
def best_of(
    make: Callable[[int], Tensor],
    count: int,
    prompts: Sequence[str],
    reward: Reward,
    *,
    deadline: float | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of B prompts the best of `count` pictures, its reward (B,), and which it is (B,).

    Args:
        make: makes picture j of each prompt, (B, 3, H, W).
        count: how many.
        prompts: B captions.
        reward: what they are compared by.
        deadline: of `time.monotonic`; past it no further one is made. The first is always.
        progress: show a progress bar.
    """
    best: Tensor | None = None
    rewards, which = torch.full((len(prompts),), -float("inf")), torch.zeros(len(prompts), dtype=torch.long)
    for j in tqdm(range(count), "drafts", disable=not progress, leave=False):
        if j and deadline is not None and time.monotonic() > deadline:
            break
        pictures = make(j)
        found = reward(pictures, prompts).float().cpu()
        better = found > rewards
        mask = better.to(pictures.device)[:, None, None, None]
        best = pictures if best is None else torch.where(mask, pictures, best)
        rewards, which = torch.where(better, found, rewards), torch.where(better, j, which)
    assert best is not None
    return best, rewards, which


def best_drafts(
    sampler: StepwiseSampler,
    reward: Reward,
    config: SearchConfig,
    decoder: object = None,
    *,
    deadline: float | None = None,
    progress: bool = False,
) -> list[int]:
    """Return for each prompt of a sampler the seed of the noise whose draft has the highest reward.

    Args:
        sampler: at its start, with the first candidates' seeds; it is left as it is.
        reward: what drafts are compared by.
        config: gives `candidates` and `preview_size`.
        decoder: see `search`.
        deadline: see `best_of`.
        progress: show a progress bar.
    """

    def draft(j: int) -> Tensor:
        own = sampler.restarted(candidates(sampler.seeds, j))
        while _PART * (own.index + 1) < len(own.timesteps):
            own.advance(own.predict())
        return own.preview(rolled_out(own, own.predict(), _ROLLOUT), config.preview_size, decoder)

    which = best_of(draft, config.candidates, sampler.prompts, reward, deadline=deadline, progress=progress)[2]
    return [candidates(sampler.seeds, j)[i] for i, j in enumerate(which.tolist())]
