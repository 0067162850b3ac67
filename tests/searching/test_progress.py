"""The callback of a search: it sees every entry, may call for previews, and may end the optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import maskunet as mu
from maskunet.searching import SearchConfig, SearchResult, SearchState

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig.preset(
    "masks", num_inference_steps=6, iterations=(0, 2, 0), learning_rate=0.5, guidance_scale=4.0
)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def search(pipe: Any, config: SearchConfig = CONFIG, **options: Any) -> SearchResult:
    return mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False, **options)


def rewards(result: SearchResult) -> list[Any]:
    return [entry["reward"] for entry in result.history]


def test_the_callback_sees_every_entry_and_changes_nothing(pipe: Any) -> None:
    seen: list[tuple[int, int, Any]] = []
    previews: list[Tensor] = []

    def observe(state: SearchState) -> None:
        seen.append((state.step, state.steps, state.history[-1]["reward"]))
        assert len(state.history) == len(seen)
        assert state.samples == (0, 1)
        previews.append(state.preview())

    plain, observed = search(pipe), search(pipe, on_step=observe)
    assert torch.equal(plain.tensor, observed.tensor)
    first, second = plain.masks.tensors(), observed.masks.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rewards(plain) == rewards(observed) == [reward for _, _, reward in seen]
    assert [step for step, _, _ in seen] == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert {steps for _, steps, _ in seen} == {6}
    for images, (_, _, reward) in zip(previews, seen, strict=True):
        assert images.shape == (2, 3, 16, 16)
        assert not images.requires_grad
        if reward[0] is not None:  # the reward saw these images
            torch.testing.assert_close(redness(images, PROMPTS), torch.tensor(reward), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        previews[-1], observed.tensor, atol=0.2, rtol=0
    )  # the last prediction is almost the image


def test_previews_are_of_samples_that_have_not_left(pipe: Any) -> None:
    def generous(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return redness(images, prompts) + torch.tensor([10.0 if prompt == PROMPTS[0] else 0.0 for prompt in prompts])

    counts = []

    def observe(state: SearchState) -> None:
        assert len(state.preview()) == len(state.samples)
        densities = state.history[-1]["density"]
        assert [i for i, density in enumerate(densities) if density is not None] == list(state.samples)
        counts.append(len(state.samples))

    config = SearchConfig.preset("masks", num_inference_steps=1, iterations=2, guidance_scale=4.0, target_reward=5.0)
    mu.search(pipe, PROMPTS, generous, config, seeds=SEEDS, progress=False, on_step=observe)
    assert counts == [2, 1, 1]  # the first sample reaches its target at once


def test_a_true_result_ends_the_optimisation_and_keeps_the_masks(pipe: Any) -> None:
    config = replace(CONFIG, compare_base=False)  # the masks of the search, also where the base is better
    complete = search(pipe, config)
    ended = search(pipe, config, on_step=lambda state: state.step == 2)
    assert [entry["step"] for entry in ended.history] == [0, 1, 2, 3, 4, 5]
    density = ended.masks.density()
    assert density.shape == (6, 2)
    assert float(density[2].max()) < 1
    assert bool((density[[0, 1, 3, 4, 5]] == 1).all())
    assert rewards(ended)[:3] == rewards(complete)[:3]
    torch.testing.assert_close(ended.rewards, redness(ended.tensor, PROMPTS))
