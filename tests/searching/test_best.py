"""Samples that leave a step: each gets the masks of a search of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.maskers import RandomMasks
from maskunet.rewards import Reward
from maskunet.searching import SearchConfig, SearchResult
from maskunet.searching.best import BestIterates

PROMPTS, SEEDS = ["a b", "c d", "e f"], [4, 7, 9]
CONFIG: dict[str, Any] = {
    "num_inference_steps": 3,
    "iterations": 4,
    "guidance_scale": 4.0,
    "learning_rate": 0.5,
    "initial_logit": 1.0,
}


class Redness(Reward):
    """Redness with another offset for each prompt, so that a target is reached at once, later or never."""

    name = "redness"
    offsets: ClassVar[dict[str, float]] = {"a b": 0.0, "c d": 10.0, "e f": -10.0}

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.sizes.append(len(images))
        offsets = images.new_tensor([self.offsets[p] for p in prompts])
        return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)) + offsets


def search(pipe: Any, samples: Sequence[int], **changes: Any) -> tuple[SearchResult, list[int]]:
    reward = Redness()
    config = SearchConfig.preset("masks", **{**CONFIG, **changes})
    prompts, seeds = [PROMPTS[i] for i in samples], [SEEDS[i] for i in samples]
    return mu.search(pipe, prompts, reward, config, seeds=seeds, progress=False), reward.sizes


def reachable_target(pipe: Any) -> float:
    """A reward that the first sample reaches on the way, the second at once and the third never."""
    result, _ = search(pipe, [0])
    rewards = [entry["reward"][0] for entry in result.history if entry["step"] == 0]
    assert max(rewards) > rewards[0]
    return (rewards[0] + max(rewards)) / 2


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_or_the_last_iterate_is_kept_per_sample(keep: str) -> None:
    best = BestIterates(2, SearchConfig(keep=keep, patience=2, target_reward=5.0))
    for k, rewards in enumerate([[1.0, 3.0], [2.0, 1.0], [0.0, 2.0]]):
        values = torch.full((2, 1, 1, 1), float(k))
        best.update(torch.tensor(rewards), values, {"a": torch.full((2, 2, 2), k)}, [0, 1], [0, 1])
    expected = [1, 0] if keep == "best" else [2, 2]
    assert best.output is not None
    assert best.output.flatten().tolist() == expected
    assert best.masks["a"][:, 0, 0].tolist() == expected
    assert [best.is_finished(i) for i in (0, 1)] == [False, True]  # two iterations without a higher reward
    best.update(torch.tensor([5.0]), torch.full((1, 1, 1, 1), 3.0), {"a": torch.full((1, 2, 2), 3)}, [0], [0])
    assert best.is_finished(0)
    assert best.masks["a"][:, 0, 0].tolist() == [3, expected[1]]  # a sample that has left keeps its masks


@pytest.mark.parametrize(
    ("changes", "has_masker"),
    [
        ({"halves": "conditional"}, False),
        ({"halves": "both", "reuse": False, "keep": "last"}, False),
        ({"patience": 1, "keep": "last"}, False),
        ({"patience": 1}, True),
    ],
)
def test_a_sample_that_leaves_is_searched_as_if_alone(pipe: Any, changes: dict[str, Any], has_masker: bool) -> None:
    if has_masker:
        mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.9, seed=1))
    changes = {"target_reward": reachable_target(pipe)} | changes
    together, sizes = search(pipe, [0, 1, 2], **changes)
    counts = []
    for i in range(3):
        alone, _ = search(pipe, [i], **changes)
        masks, expected_masks = together.masks.select(i), alone.masks
        names = [layer.name for layer in expected_masks.network.layers]
        equal = [(masks.get(t, n) == expected_masks.get(t, n)).float().mean() for t in range(3) for n in names]
        assert float(torch.stack(equal).mean()) > 0.999
        torch.testing.assert_close(together.tensor[i], alone.tensor[0], atol=1e-3, rtol=1e-3)
        expected = [entry["reward"] for entry in alone.record(0)["history"]]
        assert [entry["reward"] for entry in together.record(i)["history"]] == pytest.approx(expected, abs=1e-3)
        counts.append(len(expected))
    assert counts[1] == 3  # once per step: it reaches its target at once
    assert counts[1] < counts[0] <= counts[2]
    # A sample that leaves drops out of the batch, unless a masker is attached; the first and last call see all images.
    assert set(sizes[1:-1]) == {3} if has_masker else min(sizes[1:-1]) < 3


def test_a_step_ends_when_all_samples_have_left(pipe: Any) -> None:
    _, sizes = search(pipe, [0, 1], target_reward=-5.0)
    assert sizes == [2] * 5
    _, sizes = search(pipe, [1, 2], target_reward=-5.0)
    assert sizes == [2] + [2, 1, 1, 1, 1] * 3 + [2]  # first and last: images of the seeds, finished images


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_reuse_changes_no_bit_when_a_batch_shrinks(pipe: Any, halves: str) -> None:
    changes = {"target_reward": reachable_target(pipe), "halves": halves}
    reused, sizes = search(pipe, [0, 1, 2], **changes)
    computed, _ = search(pipe, [0, 1, 2], **changes, reuse=False)
    assert len(set(sizes)) > 1
    first, second = reused.masks.tensors(), computed.masks.tensors()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(reused.tensor, computed.tensor)
