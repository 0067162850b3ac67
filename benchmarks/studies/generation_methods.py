"""Ways to generate images by a reward, by name: mask search and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.studies import rivals
from maskunet.rewards.base import Reward
from maskunet.searching import SearchConfig, search

#: (pipe, prompts, seeds, reward, **options) to images (B, 3, H, W).
GenerationMethod = Callable[..., Tensor]


def masks(preset: str = "default", **changes: Any) -> GenerationMethod:
    """Return mask search as a method.

    Args:
        preset: of `SearchConfig.preset`.
        changes: settings that differ from the preset.
    """
    return partial(_masks, config=SearchConfig.preset(preset, compare_base=False, **changes))


def _masks(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    config: SearchConfig,
    **options: Any,
) -> Tensor:
    return search(pipe, prompts, reward, replace(config, **options), seeds=seeds, progress=False).tensor


def best_then_masks(preset: str = "default", *, count: int, **changes: Any) -> GenerationMethod:
    """Return the method that searches masks from the best of `count` noises and returns the better image of the two.

    Args:
        preset: of `SearchConfig.preset`.
        count: noises per prompt.
        changes: settings that differ from the preset.
    """
    config = SearchConfig.preset(preset, compare_base=False, **changes)
    return partial(_best_then_masks, count=count, config=config)


def _best_then_masks(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    count: int,
    config: SearchConfig,
    **options: Any,
) -> Tensor:
    best_seeds, images, values = rivals.best_noises(pipe, prompts, seeds, reward, count=count, **options)
    result = search(pipe, prompts, reward, replace(config, **options), seeds=best_seeds, progress=False)
    better = result.rewards > values
    return torch.where(better[:, None, None, None], result.tensor, images)


def fingerprint(method: GenerationMethod) -> str:
    """Return a method's settings as text; a saved cell of another fingerprint is measured again.

    Args:
        method: the method.
    """
    if isinstance(method, partial):
        settings = {k: fingerprint(v) if callable(v) else v for k, v in method.keywords.items()}
        return f"{method.func.__name__} {sorted(settings.items())}"
    return getattr(method, "__name__", repr(method))


def plain(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, **options: Any) -> Tensor:
    """Sample as the pipeline does; the reward is not used.

    Args:
        pipe, prompts, seeds, reward, options: as in `rivals.best_of_n`.
    """
    return rivals.plain(pipe, prompts, seeds, **options)


#: Methods by name, at about the compute of the search's default; the paper's own settings take four times that.
METHODS: dict[str, GenerationMethod] = {
    "plain": plain,
    "best of 6": partial(rivals.best_of_n, count=6),
    "particles, 5": partial(rivals.particles, count=5),
    "random masks, 6": partial(rivals.random_masks, count=6),
    "noise optimisation": partial(rivals.noise_optimisation, iterations=14),
    "gradient guidance": partial(rivals.gradient_guidance, scale=0.1),
    "drafts, 11": masks(candidates=11, iterations=0),
    "drafts and masks, default": masks(),
    "masks alone": masks("masks"),
    "masks, paper": masks("paper"),
}
