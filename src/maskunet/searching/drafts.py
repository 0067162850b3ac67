"""Drafts: the most promising of several starting noises per prompt, by the reward of a coarse image.

The starting noise fixes an image's composition; masks hardly change it. A draft takes the first fifth of the steps and a
short roll-out from there, which ranks noises for a fraction of an image's U-Net calls. A scheduler that adds fresh noise
at every step (DDPM, Euler ancestral) adds none in the roll-out, so its drafts predict less of the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..relaxation import derive_seed
from ..rewards.base import Reward
from ..sampling.rollout import roll_out
from ..sampling.stepwise import StepwiseSampler
from .config import SearchConfig

#: A draft takes one in STEP_FRACTION of the denoising steps, then ROLLOUT_CALLS calls of a roll-out.
STEP_FRACTION, ROLLOUT_CALLS = 5, 3


def candidate_seeds(seeds: Sequence[int], j: int) -> list[int]:
    """Return the seeds of candidate j of each prompt.

    Args:
        seeds: one seed per prompt.
        j: number of the candidate; 0 is the prompts' own seeds.
    """
    return list(seeds) if j == 0 else [derive_seed(seed, "candidate", j) % 2**31 for seed in seeds]


@torch.no_grad()
def best_by_reward(
    make_images: Callable[[int], Tensor],
    count: int,
    prompts: Sequence[str],
    reward: Reward,
    *,
    deadline: float | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best of several images per prompt, by reward.

    Args:
        make_images: returns candidate j of each prompt, (B, 3, H, W).
        count: number of candidates, >= 1.
        prompts: B captions.
        reward: reward to compare images by.
        deadline: time of `time.monotonic` after which no further candidate is made; the first always is. None for none.
        progress: show a progress bar.

    Returns:
        Images (B, 3, H, W), their rewards (B,), and the numbers of their candidates (B,).
    """
    best: Tensor | None = None
    highest, indices = torch.full((len(prompts),), -float("inf")), torch.zeros(len(prompts), dtype=torch.long)
    for j in tqdm(range(count), "drafts", disable=not progress, leave=False):
        if j and deadline is not None and time.monotonic() > deadline:
            break
        images = make_images(j)
        rewards = reward(images, prompts).float().cpu()
        is_better = rewards > highest
        mask = is_better.to(images.device)[:, None, None, None]
        best = images if best is None else torch.where(mask, images, best)
        highest, indices = torch.where(is_better, rewards, highest), torch.where(is_better, j, indices)
    assert best is not None
    return best, highest, indices


def best_drafts(
    sampler: StepwiseSampler,
    reward: Reward,
    config: SearchConfig,
    decoder: Any = None,
    *,
    deadline: float | None = None,
    progress: bool = False,
) -> list[int]:
    """Return for each prompt the seed of the noise whose draft has the highest reward.

    Args:
        sampler: sampler before its first step, with the prompts' own seeds; it is not changed.
        reward: reward to compare drafts by.
        config: settings of the search, for `candidates` and `preview_size`.
        decoder: decoder of the drafts; the pipeline's own if None.
        deadline: time of `time.monotonic` after which no further candidate is drafted; None for none.
        progress: show a progress bar.
    """

    def make_drafts(j: int) -> Tensor:
        draft = sampler.with_seeds(candidate_seeds(sampler.seeds, j))
        while STEP_FRACTION * (draft.index + 1) < len(draft.timesteps):
            draft.advance(draft.predict())
        return draft.preview(roll_out(draft, draft.predict(), ROLLOUT_CALLS), config.preview_size, decoder)

    _, _, indices = best_by_reward(
        make_drafts, config.candidates, sampler.prompts, reward, deadline=deadline, progress=progress
    )
    return [candidate_seeds(sampler.seeds, j)[i] for i, j in enumerate(indices.tolist())]
