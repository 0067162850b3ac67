"""What a search tells its caller on the way: every entry, pictures on demand, and it ends when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import maskunet as mu
from maskunet.searching import SearchConfig, SearchResult, SearchStep

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig(num_inference_steps=6, iterations=(0, 2, 0), learning_rate=0.5, guidance_scale=4.0)


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


def searched(pipe: Any, config: SearchConfig = CONFIG, **options: Any) -> SearchResult:
    return mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False, **options)


def rewards(result: SearchResult) -> list[Any]:
    return [h["reward"] for h in result.history]


def test_it_is_told_of_every_entry_and_changes_no_bit(pipe: Any) -> None:
    seen: list[tuple[int, int, Any]] = []
    shown: list[Tensor] = []

    def look(step: SearchStep) -> None:
        seen.append((step.step, step.steps, step.history[-1]["reward"]))
        assert len(step.history) == len(seen)
        assert step.samples == (0, 1)
        shown.append(step.preview())

    plain, told = searched(pipe), searched(pipe, on_step=look)
    assert torch.equal(plain.tensor, told.tensor)
    first, second = plain.masks.tensors(), told.masks.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rewards(plain) == rewards(told) == [reward for _, _, reward in seen]
    assert [step for step, _, _ in seen] == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert {steps for _, steps, _ in seen} == {6}
    for pictures, (_, _, reward) in zip(shown, seen, strict=True):
        assert pictures.shape == (2, 3, 16, 16)
        assert not pictures.requires_grad
        if reward[0] is not None:  # the pictures are those that the reward saw
            torch.testing.assert_close(redness(pictures, PROMPTS), torch.tensor(reward), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shown[-1], told.tensor, atol=0.2, rtol=0)  # the last prediction is almost the picture


def test_pictures_are_those_of_samples_that_go_on(pipe: Any) -> None:
    def generous(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return redness(pictures, prompts) + torch.tensor([10.0 if prompt == PROMPTS[0] else 0.0 for prompt in prompts])

    counts = []

    def look(step: SearchStep) -> None:
        assert len(step.preview()) == len(step.samples)
        assert [i for i, d in enumerate(step.history[-1]["density"]) if d is not None] == list(step.samples)
        counts.append(len(step.samples))

    config = SearchConfig(num_inference_steps=1, iterations=2, guidance_scale=4.0, target_reward=5.0)
    mu.search(pipe, PROMPTS, generous, config, seeds=SEEDS, progress=False, on_step=look)
    assert counts == [2, 1, 1]  # the first has what it wants at once


def test_it_ends_when_told_to_and_keeps_what_it_found(pipe: Any) -> None:
    whole = searched(pipe)
    ended = searched(pipe, on_step=lambda step: step.step == 2)
    assert [h["step"] for h in ended.history] == [0, 1, 2, 3, 4, 5]
    density = ended.masks.density()
    assert density.shape == (6, 2)
    assert float(density[2].max()) < 1
    assert bool((density[[0, 1, 3, 4, 5]] == 1).all())
    assert rewards(ended)[:3] == rewards(whole)[:3]
    assert bool(ended.rewards.isfinite().all())
