"""Masks that are held: when they are made anew, and that they are the other masker's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel as Unet
from torch import Tensor

import maskunet as mu


@pytest.fixture
def masker(sd1: Unet) -> mu.LowRankMasker:
    masker = mu.LowRankMasker.for_unet(sd1, mu.LowRankConfig(rank=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return masker


def test_held_for_one_call_they_are_the_maskers_own(
    sd1: Unet, masker: mu.LowRankMasker, predict: Callable[..., Tensor]
) -> None:
    mu.attach(sd1, masker)
    own = [predict(sd1, timestep=t) for t in (900, 500, 100)]
    mu.attach(sd1, mu.HeldMasks(masker, every=1))
    for t, expected in zip((900, 500, 100), own, strict=True):
        torch.testing.assert_close(predict(sd1, timestep=t), expected, atol=1e-5, rtol=1e-5)


def renewals(unet: Unet, held: mu.HeldMasks, predict: Callable[..., Tensor], timesteps: list[float]) -> list[int]:
    """Blocks whose masks were made anew, call by call."""
    mu.attach(unet, held)
    counts = [held.renewals]
    for t in timesteps:
        predict(unet, timestep=t)
        counts.append(held.renewals)
    return [b - a for a, b in itertools.pairwise(counts)]


def test_masks_serve_for_so_many_calls_and_a_new_picture_begins_anew(
    sd1: Unet, masker: mu.LowRankMasker, predict: Callable[..., Tensor]
) -> None:
    count = len(masker.network.blocks)
    made = renewals(sd1, mu.HeldMasks(masker, every=2), predict, [900, 700, 500, 300, 900, 700])
    assert made == [count, 0, count, 0, count, 0]


def test_a_new_picture_begins_anew_though_masks_have_not_served_their_time(
    sd1: Unet, masker: mu.LowRankMasker, predict: Callable[..., Tensor]
) -> None:
    count = len(masker.network.blocks)
    assert renewals(sd1, mu.HeldMasks(masker, every=25), predict, [900, 500, 900, 500]) == [count, 0, count, 0]


def test_another_picture_at_the_same_timestep_begins_anew_and_the_same_call_does_not(
    sd1: Unet, masker: mu.LowRankMasker, inputs: Callable[..., dict[str, Any]]
) -> None:
    count = len(masker.network.blocks)
    held = mu.HeldMasks(masker, every=3)
    mu.attach(sd1, held)
    call, made = inputs(sd1), []
    other = call | {"sample": call["sample"].flip(0)}

    def asked(call: dict[str, Any], timestep: float) -> None:
        before = held.renewals
        with torch.no_grad():
            sd1(**call | {"timestep": torch.tensor(timestep)})
        made.append(held.renewals - before)

    for timestep in (900, 900, 900, 900, 700):  # over and over again: one call
        asked(call, timestep)
    asked(other, 700)  # a run that was broken off, and another
    asked(other, 500)
    assert made == [count, 0, 0, 0, 0, count, 0]
    alone = held.apart()
    assert (alone.masker, alone.every, alone.renewals) == (held.masker, 3, 0)


def test_masks_of_the_conditional_half_stay_there(
    sd1: Unet, masker: mu.LowRankMasker, predict: Callable[..., Tensor]
) -> None:
    schedule = mu.MaskSchedule(masker.network, [900.0, 100.0], guided_half="conditional")
    generator = torch.Generator().manual_seed(0)
    for layer in masker.network.layers:
        for index in range(2):
            schedule.set(index, {layer.name: torch.rand(1, *layer.shape, generator=generator) < 0.5})
    plain = predict(sd1, timestep=900)
    mu.attach(sd1, schedule)
    expected = predict(sd1, timestep=900)
    mu.attach(sd1, mu.HeldMasks(schedule, every=2))
    found = predict(sd1, timestep=900)
    assert torch.equal(found, expected)
    half = len(plain) // 2
    torch.testing.assert_close(found[:half], plain[:half], atol=1e-6, rtol=1e-6)
    assert float((found[half:] - plain[half:]).abs().max()) > 1e-3


def test_masks_are_made_anew_when_the_condition_has_moved(
    sd1: Unet, masker: mu.LowRankMasker, predict: Callable[..., Tensor]
) -> None:
    count = len(masker.network.blocks)
    assert renewals(sd1, mu.HeldMasks(masker, tolerance=0.0), predict, [900, 500, 500, 100]) == [
        count,
        count,
        0,
        count,
    ]
    assert renewals(sd1, mu.HeldMasks(masker, tolerance=1e6), predict, [900, 500, 100]) == [count, 0, 0]


def test_another_batch_has_its_own_masks(
    sd1: Unet, masker: mu.LowRankMasker, inputs: Callable[..., dict[str, Any]]
) -> None:
    held = mu.HeldMasks(masker, every=8)
    mu.attach(sd1, held)
    call = inputs(sd1)
    with torch.no_grad():
        sd1(**call)
        before = held.renewals
        sd1(**{k: v[:1] if isinstance(v, Tensor) and v.ndim > 1 else v for k, v in call.items()})
    assert held.renewals > before


def test_settings_and_seeds_that_make_no_sense_are_refused(sd1: Unet, masker: mu.LowRankMasker) -> None:
    for settings in ({}, {"every": 0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError, match="expected every >= 1 or tolerance >= 0"):
            mu.HeldMasks(masker, **settings)
    with pytest.raises(mu.TargetError, match="expected no seed, HeldMasks holds masks"):
        mu.attach(sd1, mu.HeldMasks(masker, every=2), seed=0)
