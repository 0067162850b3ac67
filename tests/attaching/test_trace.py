"""Records of logits, masks and densities."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

import maskunet as mu
from maskunet import targets
from maskunet.errors import SettingError, TargetError
from maskunet.maskers import MaskTable, RandomMasks

Unet = UNet2DConditionModel
PRESET = "decoder-attention-conv"


@pytest.fixture
def masked(sd1: Unet) -> Unet:
    mu.attach(sd1, MaskTable.for_unet(sd1), seed=0)
    return sd1


def test_nothing_is_recorded_without_a_masker(sd1: Unet) -> None:
    with pytest.raises(TargetError, match="expected a model with a masker, none is attached"), mu.record(sd1):
        pass


def test_a_record_of_a_pipeline_has_a_call_for_each_step(
    pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor]
) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.5))
    with mu.record(pipe) as trace:
        draw_latents(pipe, ["ab"], [0])
    assert trace.timesteps == [float(t) for t in pipe.scheduler.timesteps]
    assert len(trace.calls) == 2
    assert trace.logits == {}
    assert all(len(values) == 2 for values in trace.density.values())
    assert trace.masks is trace.calls[-1].masks


def test_recording_changes_no_output_and_ends_with_its_context(masked: Unet, predict: Callable[..., Tensor]) -> None:
    before = predict(masked)
    with mu.record(masked) as trace:
        assert torch.equal(predict(masked), before)
    predict(masked)
    assert len(trace.calls) == 1


def test_records_nest(masked: Unet, predict: Callable[..., Tensor]) -> None:
    with mu.record(masked) as outer:
        predict(masked)
        with mu.record(masked) as inner:
            predict(masked)
        predict(masked)
    assert (len(outer.calls), len(inner.calls)) == (2, 1)


def test_calls_of_the_base_model_are_not_recorded(masked: Unet, predict: Callable[..., Tensor]) -> None:
    with mu.record(masked) as trace, mu.disabled(masked):
        predict(masked)
    assert trace.calls == []
    assert (trace.logits, trace.masks, trace.density, trace.timesteps) == ({}, {}, {}, [])


@pytest.mark.parametrize(("keep", "kept"), [("all", [32, 32, 32]), ("last", [0, 0, 32]), ("density", [0, 0, 0])])
def test_what_is_kept(masked: Unet, predict: Callable[..., Tensor], keep: str, kept: list[int]) -> None:
    with mu.record(masked, keep=keep) as trace:
        for timestep in (3, 2, 1):
            predict(masked, timestep=timestep)
    assert [len(call.masks) for call in trace.calls] == kept
    assert [len(call.logits) for call in trace.calls] == kept
    assert [len(call.density) for call in trace.calls] == [32, 32, 32]
    assert {len(values) for values in trace.density.values()} == {3}
    assert trace.timesteps == [3, 2, 1]


@pytest.mark.parametrize("keep", ["all", "density"])
def test_overall_density_weighs_layers_by_their_size(sd1: Unet, predict: Callable[..., Tensor], keep: str) -> None:
    mu.attach(sd1, RandomMasks.for_unet(sd1, PRESET, density=0.3))
    with mu.record(sd1) as whole:
        for timestep in (9, 5):
            predict(sd1, timestep=timestep)
    with mu.record(sd1, keep=keep) as trace:
        for timestep in (9, 5):
            predict(sd1, timestep=timestep)
    found = trace.overall_density()
    masks = whole.masks.values()
    kept = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert len(found) == 2
    assert found[1] == pytest.approx(kept, abs=1e-6)
    assert trace.calls[0].sizes == {layer.name: layer.weights for layer in targets.describe(sd1, PRESET).layers}


def test_overall_density_of_different_samples_is_their_mean(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    table = MaskTable.for_unet(sd1, samples=2)
    with torch.no_grad():
        for i, logits in enumerate(table.logits.values()):
            logits[0].fill_(1.0)
            logits[1].fill_(-1.0 if i % 3 else 1.0)
    mu.attach(sd1, table)
    with mu.record(sd1) as trace:
        predict(sd1)
    kept = sum(int(m.sum()) for m in trace.masks.values()) / sum(m.numel() for m in trace.masks.values())
    assert 0.5 < kept < 1
    assert trace.overall_density() == [pytest.approx(kept)]
    with mu.record(sd1) as empty, mu.disabled(sd1):
        predict(sd1)
    assert empty.overall_density() == []


def test_an_unknown_keep_is_refused(masked: Unet) -> None:
    with pytest.raises(ValueError, match="'all', 'last' or 'density', got 'some'"), mu.record(masked, keep="some"):
        pass


def test_past_its_room_a_record_keeps_densities_and_warns_once(
    masked: Unet, predict: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    weights = targets.describe(masked).weights
    room = weights * 5 * 1.5 / 2**30
    with caplog.at_level(logging.WARNING, "maskunet"), mu.record(masked, limit_gb=room) as trace:
        for _ in range(3):
            predict(masked)
    assert len(trace.calls[0].masks) == 32
    assert 0 < len(trace.calls[1].masks) < 32
    assert trace.calls[2].masks == {}
    assert all(len(call.density) == 32 for call in trace.calls)
    assert len(caplog.records) == 1
    assert "only densities are kept from here on" in caplog.text
    assert "limit_gb" in caplog.text


def test_a_record_holds_tensors_without_a_graph(sd1: Unet, inputs: Callable[..., dict[str, Any]]) -> None:
    mu.attach(sd1, MaskTable.for_unet(sd1).train())
    with mu.record(sd1) as trace:
        sd1(**inputs(sd1))
    tensors = [*trace.logits.values(), *trace.masks.values(), *trace.calls[0].density.values()]
    assert not any(t.requires_grad for t in tensors)
    assert {t.dtype for t in trace.logits.values()} == {torch.float32}


def test_recorded_values_do_not_change_with_the_masker(masked: Unet, predict: Callable[..., Tensor]) -> None:
    table = MaskTable.for_unet(masked, initial_logit=2.0)
    mu.attach(masked, table)
    with mu.record(masked) as trace:
        predict(masked)
    with torch.no_grad():
        for logits in table.logits.values():
            logits.fill_(-3.0)
    assert all(torch.equal(x, torch.full_like(x, 2.0)) for x in trace.logits.values())


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1, "x", None, True])
def test_a_limit_that_is_no_size_is_refused(masked: Unet, limit: Any) -> None:
    with pytest.raises(SettingError, match="expected limit_gb to be a number"), mu.record(masked, limit_gb=limit):
        pass
