"""One battery over every masker that can be attached, on a U-Net in the SD 1.x architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import maskunet as mu
from maskunet import relaxation, targets
from maskunet.checkpoint import masker_names
from maskunet.errors import CheckpointError, TargetError
from maskunet.maskers import (
    BlockInput,
    ComposedMasker,
    ConditionalMasker,
    Draw,
    FixedMasks,
    Masker,
    MaskSchedule,
    MaskTable,
    RandomMasks,
    parts_of,
)
from maskunet.searching.searched_masks import SearchedMasks

Unet = UNet2DConditionModel
BATCH = 2
TIMESTEPS = (900.0, 500.0, 20.0)


@dataclass(frozen=True)
class Case:
    """A masker of some kind.

    Args:
        build: builds one that drops weights.
        keep_all: builds one that keeps every weight.
        targets: its masked layers.
        masks: number M of its masks per layer; row r of a batch takes mask r mod M.
        recorded: masks per layer in the record of a batch.
        has_logits: whether its masks have logits.
        is_trainable: whether it has parameters.
        is_savable: whether it has files.
        is_conditional: whether it masks only the second half of a batch.
    """

    build: Callable[[Unet], Masker]
    keep_all: Callable[[Unet], Masker]
    targets: str = "decoder-attention"
    masks: int = 1
    recorded: int = 1
    has_logits: bool = False
    is_trainable: bool = False
    is_savable: bool = True
    is_conditional: bool = False

    @property
    def batch(self) -> int:
        """Rows of the smallest batch with at least two rows."""
        return 2 * self.masks if self.is_conditional else BATCH

    def groups(self, batch: int) -> list[list[int]]:
        """Rows of a batch that can be computed without the others."""
        if self.is_conditional:
            half = batch // 2
            pairs = [list(range(i, i + self.masks)) for i in range(0, half, self.masks)]
            return [[*rows, *(row + half for row in rows)] for rows in pairs]
        return [list(range(i, i + self.masks)) for i in range(0, batch, self.masks)]


def randomised(masker: Masker) -> Masker:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return masker


def conditional_case(kind: type[mu.MaskGenerator] | type[mu.LowRankMasker], **settings: Any) -> Case:
    config = kind.config_class(**settings)
    return Case(
        lambda unet: randomised(kind.for_unet(unet, config)),
        lambda unet: kind.for_unet(unet, config),
        targets=str(config.targets),
        recorded=BATCH if config.use_timestep or config.use_sample else 1,
        has_logits=True,
        is_trainable=True,
    )


def table_case(samples: int | None) -> Case:
    return Case(
        lambda unet: randomised(MaskTable.for_unet(unet, samples=samples)),
        lambda unet: MaskTable.for_unet(unet, samples=samples, initial_logit=20.0),
        masks=samples or 1,
        recorded=samples or 1,
        has_logits=True,
        is_trainable=True,
    )


def random_masks(
    unet: Unet, samples: int | None, density: float, preset: str = "decoder-attention", seed: int = 5
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead = () if samples is None else (samples,)
    layers = targets.describe(unet, preset).layers
    return {x.name: torch.rand((*lead, *x.shape), generator=generator) < density for x in layers}


def fixed_case(samples: int | None, preset: str = "decoder-attention") -> Case:
    return Case(
        lambda unet: FixedMasks(random_masks(unet, samples, 0.7, preset)),
        lambda unet: FixedMasks(random_masks(unet, samples, 2.0, preset)),
        targets=preset,
        masks=samples or 1,
        recorded=samples or 1,
    )


def random_case(preset: str = "decoder-attention") -> Case:
    return Case(
        lambda unet: RandomMasks.for_unet(unet, preset, density=0.7, seed=3),
        lambda unet: RandomMasks.for_unet(unet, preset, density=1.0),
        targets=preset,
    )


def schedule_case(samples: int, guided_half: str | None = None, preset: str = "decoder-attention") -> Case:
    def build(unet: Unet) -> MaskSchedule:
        schedule = MaskSchedule(targets.describe(unet, preset), TIMESTEPS, samples, guided_half)
        for i in range(len(TIMESTEPS)):
            schedule.set(i, random_masks(unet, samples, 0.7, preset, seed=i))
        return schedule

    return Case(
        build,
        lambda unet: MaskSchedule(targets.describe(unet, preset), TIMESTEPS, samples, guided_half),
        targets=preset,
        masks=samples,
        recorded=samples,
        is_conditional=guided_half is not None,
    )


def searched_case(preset: str = "decoder-attention") -> Case:
    def build(unet: Unet, density: float) -> SearchedMasks:
        masker = SearchedMasks(targets.describe(unet, preset))
        masker.masks = {name: mask.float() for name, mask in random_masks(unet, None, density, preset).items()}
        return masker

    return Case(lambda unet: build(unet, 0.7), lambda unet: build(unet, 2.0), targets=preset, is_savable=False)


def composed_case(compose: str) -> Case:
    """Two trained maskers, or three of which two are fixed."""
    low_rank, paper = conditional_case(mu.LowRankMasker, rank=4), conditional_case(mu.MaskGenerator)
    parts = {"low-rank": low_rank, "paper": paper}
    if compose == "majority":
        parts = {"fixed": fixed_case(None), "fixed-per-sample": fixed_case(BATCH), "schedule": schedule_case(1)}

    def build(unet: Unet, is_kept: bool) -> ComposedMasker:
        return ComposedMasker(
            {name: (part.keep_all if is_kept else part.build)(unet) for name, part in parts.items()}, compose
        )

    return Case(
        lambda unet: build(unet, False),
        lambda unet: build(unet, True),
        masks=BATCH if compose == "majority" else 1,
        recorded=BATCH,
        is_trainable=compose == "product",
    )


CASES = {
    "generator": conditional_case(mu.MaskGenerator),
    "generator-without-timestep": conditional_case(mu.MaskGenerator, use_timestep=False),
    "generator-without-sample": conditional_case(mu.MaskGenerator, use_sample=False),
    "generator-conv": conditional_case(mu.MaskGenerator, targets="decoder-attention-conv", hidden=8),
    "low-rank": conditional_case(mu.LowRankMasker, rank=4),
    "low-rank-without-timestep": conditional_case(mu.LowRankMasker, rank=4, use_timestep=False),
    "low-rank-without-sample": conditional_case(mu.LowRankMasker, rank=2, use_sample=False),
    "low-rank-unconditional": conditional_case(mu.LowRankMasker, rank=4, use_timestep=False, use_sample=False),
    "low-rank-unconditional-conv": conditional_case(
        mu.LowRankMasker, rank=4, use_timestep=False, use_sample=False, targets="decoder-attention-conv"
    ),
    "low-rank-conv": conditional_case(mu.LowRankMasker, rank=4, targets="decoder-attention-conv"),
    "table": table_case(None),
    "table-per-sample": table_case(BATCH),
    "fixed": fixed_case(None),
    "fixed-per-sample": fixed_case(BATCH),
    "fixed-per-sample-conv": fixed_case(BATCH, "all"),
    "random": random_case(),
    "random-conv": random_case("decoder-attention-conv"),
    "schedule": schedule_case(1),
    "schedule-per-sample": schedule_case(BATCH),
    "schedule-per-sample-conv": schedule_case(BATCH, preset="decoder-attention-conv"),
    "schedule-conditional-half": schedule_case(1, "conditional"),
    "schedule-conditional-half-per-sample": schedule_case(BATCH, "conditional"),
    "schedule-conditional-half-conv": schedule_case(1, "conditional", "all"),
    "composed": composed_case("product"),
    "composed-by-majority": composed_case("majority"),
    "searched": searched_case(),
    "searched-conv": searched_case("decoder-attention-conv"),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def attached_state(unet: nn.Module) -> dict[str, list[str]]:
    """Attributes of instances that a new network lacks, and hooks, by module."""
    state = {}
    for name, module in unet.named_modules():
        attributes = [key for key in vars(module) if key in ("forward", "_diffusers_hook") or "maskunet" in key]
        attributes += [key for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks]
        attributes += [key for key in vars(module) if key.endswith("_with_kwargs") and getattr(module, key)]
        if attributes:
            state[name] = attributes
    return state


def test_attaching_changes_no_weight(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    before = {key: value.clone() for key, value in sd1.state_dict().items()}
    parameters = [(name, id(p), p.requires_grad) for name, p in sd1.named_parameters()]
    mu.attach(sd1, case.build(sd1))
    predict(sd1, batch=case.batch)
    after = sd1.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [(name, id(p), p.requires_grad) for name, p in sd1.named_parameters()] == parameters


def test_detaching_restores_every_bit_and_attribute(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1, batch=case.batch)
    attributes = {name: set(vars(module)) for name, module in sd1.named_modules()}
    assert attached_state(sd1) == {}
    mu.attach(sd1, case.build(sd1))
    masked = predict(sd1, batch=case.batch)
    assert attached_state(sd1)
    mu.detach(sd1)
    assert attached_state(sd1) == {}
    assert {name: set(vars(module)) for name, module in sd1.named_modules()} == attributes
    assert torch.equal(predict(sd1, batch=case.batch), base)
    assert (masked - base).abs().max() > 1e-3
    mu.detach(sd1)


def test_masks_of_ones_are_the_base_model(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1, batch=case.batch)
    mu.attach(sd1, case.keep_all(sd1))
    with mu.record(sd1) as trace:
        masked = predict(sd1, batch=case.batch)
    assert all(values == [1.0] for values in trace.density.values())
    torch.testing.assert_close(masked, base, atol=1e-6, rtol=0)


def masked_by_hand(unet: Unet, masks: Sequence[Tensor], names: Sequence[str], inputs: dict[str, Any]) -> Tensor:
    """Run a copy of the U-Net whose weights are multiplied by masks."""
    copied = copy.deepcopy(unet)
    with torch.no_grad():
        for name, mask in zip(names, masks, strict=True):
            copied.get_submodule(name).weight.mul_(mask)
        return copied(**inputs).sample


def test_each_row_is_computed_with_its_masks_times_the_weights(
    case: Case, sd1: Unet, inputs: Callable[..., dict[str, Any]]
) -> None:
    batch = case.batch * min(case.masks, 2)
    arguments = inputs(sd1, batch=batch)
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    with torch.no_grad():
        masked = sd1(**arguments).sample
        for rows in case.groups(batch):
            part = {k: v[rows] if v.ndim else v for k, v in arguments.items()}
            with mu.record(sd1) as trace:
                torch.testing.assert_close(sd1(**part).sample, masked[rows], atol=1e-5, rtol=1e-5)
            mu.detach(sd1)
            names = list(trace.masks)
            for i, row in enumerate(rows):
                single = {k: v[row : row + 1] if v.ndim else v for k, v in arguments.items()}
                is_plain = case.is_conditional and i < len(rows) // 2
                masks = [torch.ones(()) if is_plain else m[i % len(m)] for m in trace.masks.values()]
                expected = masked_by_hand(sd1, masks, names, single)
                torch.testing.assert_close(expected[0], masked[row], atol=1e-5, rtol=1e-4)
            mu.attach(sd1, masker)


def test_inference_repeats(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    first = predict(sd1, batch=case.batch)
    predict(sd1, batch=case.batch, seed=9, timestep=7)
    assert torch.equal(predict(sd1, batch=case.batch), first)
    mu.attach(sd1, masker)
    assert torch.equal(predict(sd1, batch=case.batch), first)


@pytest.mark.parametrize("seed", [None, 4])
def test_samples_do_not_see_each_other(
    case: Case, sd1: Unet, inputs: Callable[..., dict[str, Any]], predict: Callable[..., Tensor], seed: int | None
) -> None:
    mu.attach(sd1, case.build(sd1), seed=seed)
    batch = 2 * case.batch
    together = predict(sd1, batch=batch)
    arguments = inputs(sd1, batch=batch)
    for rows in case.groups(batch):
        with torch.no_grad():
            alone = sd1(
                arguments["sample"][rows], arguments["timestep"], arguments["encoder_hidden_states"][rows]
            ).sample
        torch.testing.assert_close(alone, together[rows], atol=1e-5, rtol=1e-5)


def test_a_batch_that_is_no_multiple_of_the_masks_is_refused(
    case: Case, sd1: Unet, predict: Callable[..., Tensor]
) -> None:
    mu.attach(sd1, case.build(sd1))
    unit = case.masks * (2 if case.is_conditional else 1)
    for batch in range(1, 2 * unit + 1):
        if batch % unit:
            with pytest.raises(TargetError, match=r"expected a (multiple of 2 prompts|guided batch)"):
                predict(sd1, batch=batch)
        else:
            assert predict(sd1, batch=batch).shape == (batch, 4, 8, 8)


def test_gradients_reach_every_parameter_and_nothing_else(
    case: Case, sd1: Unet, inputs: Callable[..., dict[str, Any]]
) -> None:
    masker = case.build(sd1).train()
    assert bool(list(masker.parameters())) is case.is_trainable
    mu.attach(sd1, masker, seed=1)
    output = sd1(**inputs(sd1, batch=case.batch)).sample
    assert output.requires_grad is case.is_trainable
    if case.is_trainable:
        output.square().sum().backward()
    gradients = {name: p.grad for name, p in masker.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not torch.isfinite(g).all()] == []
    assert [name for name, g in gradients.items() if g is not None and g.abs().max() == 0] == []
    assert [name for name, p in sd1.named_parameters() if p.grad is not None] == []


def test_a_record_holds_every_layer(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    with mu.record(sd1) as trace:
        predict(sd1, batch=case.batch, timestep=500)
        predict(sd1, batch=case.batch, timestep=20)
    layers = targets.describe(sd1, case.targets).layers
    names = [layer.name for layer in layers]
    assert sorted(trace.masks) == sorted(trace.density) == sorted(names)
    assert sorted(trace.logits) == (sorted(names) if case.has_logits else [])
    assert trace.timesteps == [500, 20]
    for layer in layers:
        mask = trace.masks[layer.name]
        if not case.is_conditional:
            assert mask.shape == (case.recorded, *layer.shape)
        assert mask.dtype == torch.bool
        assert len(trace.density[layer.name]) == 2
        assert trace.density[layer.name][1] == pytest.approx(mask.float().mean().item(), abs=1e-6)
        assert trace.calls[1].density[layer.name].shape == (len(mask),)
        if case.has_logits:
            assert torch.equal(mask, trace.logits[layer.name] >= relaxation.THRESHOLD)


def test_a_saved_masker_gives_the_same_bits(
    case: Case, sd1: Unet, predict: Callable[..., Tensor], tmp_path: Path
) -> None:
    masker = case.build(sd1)
    if not case.is_savable:
        masker.save_pretrained(tmp_path / "masker")
        with pytest.raises(CheckpointError, match=f"got '{type(masker).__name__}'"):
            mu.load(tmp_path / "masker", sd1)
        return
    mu.attach(sd1, masker)
    expected = predict(sd1, batch=case.batch)
    masker.save_pretrained(tmp_path / "masker")
    loaded = mu.load(tmp_path / "masker", sd1)
    assert type(loaded) is type(masker)
    assert loaded.network == masker.network
    assert loaded.settings == masker.settings
    assert not loaded.training
    mu.attach(sd1, loaded)
    assert torch.equal(predict(sd1, batch=case.batch), expected)
    assert type(type(masker).from_pretrained(tmp_path / "masker", sd1)) is type(masker)


def test_another_network_is_refused_and_nothing_changes(
    case: Case, sd1: Unet, make_unet: Callable[[str], Unet], predict: Callable[..., Tensor], tmp_path: Path
) -> None:
    masker, other = case.build(sd1), make_unet("sdxl")
    base = predict(other)
    with pytest.raises(TargetError, match=r"the masker was made for another network: (up|mid|down)_block") as caught:
        mu.attach(other, masker)
    assert "\n" not in str(caught.value)
    assert attached_state(other) == {}
    assert torch.equal(predict(other), base)
    if case.is_savable:
        with pytest.raises(TargetError, match="the masker was made for another network"):
            mu.load(masker.save_pretrained(tmp_path), other)


def test_masks_follow_the_features_to_their_device(case: Case, sd1: Unet) -> None:
    masker = case.build(sd1)
    if isinstance(masker, RandomMasks | SearchedMasks):
        pytest.skip("masks are drawn on the features' device, or set by the search")
    masker.to("meta")
    assert all(tensor.is_meta for tensor in (*masker.parameters(), *masker.buffers()))
    if any(
        isinstance(part, ConditionalMasker) for part in parts_of(masker)
    ):  # which run under autocast, unknown to the meta device
        return
    block = masker.network.blocks[0]
    skip = 16 if block.name.startswith("up_blocks") else 0
    channels = {b.name: b.in_channels for b in targets.describe(sd1, case.targets).blocks}[block.name]
    inputs = BlockInput(
        torch.zeros(case.batch, channels - skip, 4, 4, device="meta"),
        torch.zeros(case.batch, skip, 4, 4, device="meta") if skip else None,
        torch.zeros(case.batch, 64, device="meta"),
        torch.tensor(500),
    )
    masks = masker.block_masks(block.name, inputs)
    for layer in block.layers:
        assert masks[layer.name].mask(layer, Draw(), case.batch).device.type == "meta"


def test_a_half_precision_network_computes_in_its_dtype(
    case: Case, sd1: Unet, inputs: Callable[..., dict[str, Any]]
) -> None:
    half = sd1.to(torch.bfloat16)
    arguments = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs(half, batch=case.batch).items()}
    with torch.no_grad():
        base = half(**arguments).sample
        mu.attach(half, case.keep_all(half))
        same = half(**arguments).sample
        mu.attach(half, case.build(half))
        masked = half(**arguments).sample
    assert masked.dtype == same.dtype == torch.bfloat16
    scale = base.abs().max()
    assert (same - base).abs().max() < 0.05 * scale
    assert masked.isfinite().all()
    assert not torch.equal(masked, base)


def test_disabled_is_the_base_model_and_nests(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    def run() -> Tensor:
        return predict(sd1, batch=case.batch)

    base = run()
    mu.attach(sd1, case.build(sd1))
    masked = run()
    with mu.disabled(sd1):
        assert torch.equal(run(), base)
        with mu.disabled(sd1):
            assert torch.equal(run(), base)
        assert torch.equal(run(), base)
    assert torch.equal(run(), masked)
    with pytest.raises(KeyError), mu.disabled(sd1):
        raise KeyError
    assert torch.equal(run(), masked)


def test_attaching_again_replaces(case: Case, sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1, batch=case.batch)
    masker = case.build(sd1)
    mu.attach(sd1, masker)
    expected = predict(sd1, batch=case.batch)
    mu.attach(sd1, FixedMasks(random_masks(sd1, None, 0.2, "all")))
    assert not torch.equal(predict(sd1, batch=case.batch), expected)
    mu.attach(sd1, masker)
    assert torch.equal(predict(sd1, batch=case.batch), expected)
    mu.detach(sd1)
    assert torch.equal(predict(sd1, batch=case.batch), base)
    assert attached_state(sd1) == {}


def test_the_battery_covers_every_savable_masker(sd1: Unet) -> None:
    built = {type(case.build(sd1)).__name__ for case in CASES.values() if case.is_savable}
    ours = {name for name in masker_names() if hasattr(mu.maskers, name)}  # other tests may define maskers
    assert built == ours
