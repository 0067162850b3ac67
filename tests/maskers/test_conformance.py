"""One battery over every masker, on a U-Net in the SD 1.x architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import maskunet as mu
from maskunet import relaxation, targets
from maskunet.maskers import FixedMasks, Masker, MaskTable, RandomMasks

Unet = UNet2DConditionModel
BATCH = 2


@dataclass(frozen=True)
class Case:
    """A masker of some kind, and how to build one that keeps every weight.

    Args:
        build: builds one with masks that drop weights.
        keep_all: builds one that keeps every weight.
        targets: what it masks.
        sets: sets of masks that rows take by their place in the batch.
        recorded: sets of masks that a record of a batch holds.
        logits: whether its masks have logits.
        trainable: whether it has parameters.
    """

    build: Callable[[Unet], Masker]
    keep_all: Callable[[Unet], Masker]
    targets: str = "decoder-attention"
    sets: int = 1
    recorded: int = 1
    logits: bool = False
    trainable: bool = False


def randomised(masker: Masker) -> Masker:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return masker


def generator_case(kind: type[mu.MaskGenerator] | type[mu.LowRankMasker] = mu.MaskGenerator, **settings: Any) -> Case:
    config = kind.config_class(**settings)
    return Case(
        lambda unet: randomised(kind.for_unet(unet, config)),
        lambda unet: kind.for_unet(unet, config),
        targets=str(config.targets),
        recorded=BATCH,
        logits=True,
        trainable=True,
    )


def table_case(samples: int | None) -> Case:
    return Case(
        lambda unet: randomised(MaskTable.for_unet(unet, samples=samples)),
        lambda unet: MaskTable.for_unet(unet, samples=samples, initial_logit=20.0),
        sets=samples or 1,
        recorded=samples or 1,
        logits=True,
        trainable=True,
    )


def fixed_masks(unet: Unet, samples: int | None, density: float, targets: str = "decoder-attention") -> FixedMasks:
    generator = torch.Generator().manual_seed(5)
    lead = () if samples is None else (samples,)
    layers = targets.describe(unet, targets).layers
    return FixedMasks({x.name: torch.rand((*lead, *x.shape), generator=generator) < density for x in layers})


def fixed_case(samples: int | None, targets: str = "decoder-attention") -> Case:
    return Case(
        lambda unet: fixed_masks(unet, samples, 0.7, targets),
        lambda unet: fixed_masks(unet, samples, 2.0, targets),
        targets=targets,
        sets=samples or 1,
        recorded=samples or 1,
    )


def random_case(targets: str = "decoder-attention") -> Case:
    return Case(
        lambda unet: RandomMasks.for_unet(unet, targets, density=0.7, seed=3),
        lambda unet: RandomMasks.for_unet(unet, targets, density=1.0),
        targets=targets,
    )


CASES = {
    "generator": generator_case(),
    "generator-without-timestep": generator_case(use_timestep=False),
    "generator-without-sample": generator_case(use_sample=False),
    "generator-conv": generator_case(targets="decoder-attention-conv", hidden=8),
    "low-rank": generator_case(mu.LowRankMasker, rank=4),
    "low-rank-without-timestep": generator_case(mu.LowRankMasker, rank=4, use_timestep=False),
    "low-rank-without-sample": generator_case(mu.LowRankMasker, rank=2, use_sample=False),
    "low-rank-conv": generator_case(mu.LowRankMasker, rank=4, targets="decoder-attention-conv"),
    "table": table_case(None),
    "table-per-sample": table_case(BATCH),
    "fixed": fixed_case(None),
    "fixed-per-sample": fixed_case(BATCH),
    "fixed-per-sample-conv": fixed_case(BATCH, "all"),
    "random": random_case(),
    "random-conv": random_case("decoder-attention-conv"),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def traces_of_attaching(unet: nn.Module) -> dict[str, list[str]]:
    """Attributes of instances that a fresh network lacks, and hooks, by module."""
    found = {}
    for name, module in unet.named_modules():
        own = [key for key in vars(module) if key in ("forward", "_diffusers_hook") or "maskunet" in key]
        own += [key for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks]
        own += [key for key in vars(module) if key.endswith("_with_kwargs") and getattr(module, key)]
        if own:
            found[name] = own
    return found


def test_attaching_changes_no_state(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    before = {key: value.clone() for key, value in sd1.state_dict().items()}
    parameters = [(name, id(p), p.requires_grad) for name, p in sd1.named_parameters()]
    mu.attach(sd1, case.build(sd1))
    predict(sd1)
    after = sd1.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [(name, id(p), p.requires_grad) for name, p in sd1.named_parameters()] == parameters


def test_detaching_leaves_no_trace(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    keys = {name: set(vars(module)) for name, module in sd1.named_modules()}
    assert traces_of_attaching(sd1) == {}
    mu.attach(sd1, case.build(sd1))
    masked = predict(sd1)
    assert traces_of_attaching(sd1)
    mu.detach(sd1)
    assert traces_of_attaching(sd1) == {}
    assert {name: set(vars(module)) for name, module in sd1.named_modules()} == keys
    assert torch.equal(predict(sd1), base)
    assert (masked - base).abs().max() > 1e-3
    mu.detach(sd1)


def test_masks_of_ones_are_the_base_model(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.attach(sd1, case.keep_all(sd1))
    with mu.record(sd1) as trace:
        masked = predict(sd1)
    assert all(values == [1.0] for values in trace.density.values())
    torch.testing.assert_close(masked, base, atol=1e-6, rtol=0)


def test_inference_repeats(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    first = predict(sd1)
    predict(sd1, seed=9, timestep=7)
    assert torch.equal(predict(sd1), first)
    mu.attach(sd1, masker)
    assert torch.equal(predict(sd1), first)


@pytest.mark.parametrize("seed", [None, 4])
def test_samples_do_not_see_each_other(
    case: Case, sd1: Unet, inputs: Callable[..., dict[str, Any]], predict: Callable[..., Tensor], seed: int | None
) -> None:
    mu.attach(sd1, case.build(sd1), seed=seed)
    batch = 2 * BATCH
    together = predict(sd1, batch=batch)
    given = inputs(sd1, batch=batch)
    for row in range(0, batch, case.sets):
        rows = slice(row, row + case.sets)
        with torch.no_grad():
            alone = sd1(given["sample"][rows], given["timestep"], given["encoder_hidden_states"][rows]).sample
        torch.testing.assert_close(alone, together[rows], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_and_nothing_else(
    case: Case, sd1: Unet, inputs: Callable[..., dict[str, Any]]
) -> None:
    masker = case.build(sd1).train()
    assert bool(list(masker.parameters())) is case.trainable
    mu.attach(sd1, masker, seed=1)
    output = sd1(**inputs(sd1, batch=BATCH)).sample
    assert output.requires_grad is case.trainable
    if case.trainable:
        output.square().sum().backward()
    gradients = {name: p.grad for name, p in masker.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not torch.isfinite(g).all()] == []
    assert [name for name, g in gradients.items() if g is not None and g.abs().max() == 0] == []
    assert [name for name, p in sd1.named_parameters() if p.grad is not None] == []


def test_a_record_holds_every_layer(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    with mu.record(sd1) as trace:
        predict(sd1, batch=BATCH, timestep=500)
        predict(sd1, batch=BATCH, timestep=20)
    layers = targets.describe(sd1, case.targets).layers
    names = [layer.name for layer in layers]
    assert sorted(trace.masks) == sorted(trace.density) == sorted(names)
    assert sorted(trace.logits) == (sorted(names) if case.logits else [])
    assert trace.timesteps == [500, 20]
    for layer in layers:
        mask = trace.masks[layer.name]
        assert mask.shape == (case.recorded, *layer.shape)
        assert mask.dtype == torch.bool
        assert len(trace.density[layer.name]) == 2
        assert trace.density[layer.name][1] == pytest.approx(mask.float().mean().item(), abs=1e-6)
        assert trace.calls[1].density[layer.name].shape == (case.recorded,)
        if case.logits:
            assert torch.equal(mask, trace.logits[layer.name] >= relaxation.THRESHOLD)


def test_a_saved_masker_masks_the_same(case: Case, sd1: Unet, predict: Callable[..., Tensor], tmp_path: Path) -> None:
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    expected = predict(sd1)
    masker.save_pretrained(tmp_path / "masker")
    loaded = mu.load(tmp_path / "masker", sd1)
    assert type(loaded) is type(masker)
    assert loaded.network == masker.network
    assert loaded.settings == masker.settings
    assert not loaded.training
    mu.attach(sd1, loaded)
    assert torch.equal(predict(sd1), expected)


def test_disabled_is_the_base_model_and_nests(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.attach(sd1, case.build(sd1))
    masked = predict(sd1)
    with mu.disabled(sd1):
        assert torch.equal(predict(sd1), base)
        with mu.disabled(sd1):
            assert torch.equal(predict(sd1), base)
        assert torch.equal(predict(sd1), base)
    assert torch.equal(predict(sd1), masked)
    with pytest.raises(KeyError), mu.disabled(sd1):
        raise KeyError
    assert torch.equal(predict(sd1), masked)


def test_attaching_again_replaces(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    expected = predict(sd1)
    mu.attach(sd1, fixed_masks(sd1, None, 0.2, "all"))
    assert not torch.equal(predict(sd1), expected)
    mu.attach(sd1, masker)
    assert torch.equal(predict(sd1), expected)
    mu.detach(sd1)
    assert torch.equal(predict(sd1), base)
    assert traces_of_attaching(sd1) == {}
