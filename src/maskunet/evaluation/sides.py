"""A search as a side of a benchmark: pictures under masks that are found by reward for each of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ..attaching.attachment import disabled
from ..rewards.base import Reward
from ..sampling.generation import Side
from ..searching import SearchConfig, search

#: Settings of a search that leave its pictures as they are: seeds are given with the prompts, the base has its own side.
_OF_A_CALL = ("seed", "compare_base")


def search_side(pipe: Any, reward: Reward, config: SearchConfig, *, masks: bool = False) -> Side:
    """Return a function that searches masks for prompts and seeds and gives the pictures under them.

    A picture starts from the noise that `generation.pipeline_side` draws for its seed, or has it for its first candidate where the
    settings ask for drafts.

    Args:
        pipe: a Stable Diffusion pipeline.
        reward: what to climb.
        config: settings of the search; its seed and `compare_base` are not used.
        masks: search on top of the masks that are attached, if any; without them if false.
    """
    config = replace(config, compare_base=False)

    def run(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with contextlib.nullcontext() if masks else disabled(pipe):
            return search(pipe, list(prompts), reward, config, seeds=seeds, progress=False).tensor

    return run


def search_settings(config: SearchConfig) -> dict[str, Any]:
    """Return the settings that a search's pictures depend on, as JSON values."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return {name: value for name, value in found.items() if name not in _OF_A_CALL}
