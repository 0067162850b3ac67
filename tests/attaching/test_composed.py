"""Several maskers attached as one: their product or majority, switched and weighted by name, in every state of a call."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import maskunet as mu
from maskunet.errors import CheckpointError, SettingError, TargetError
from maskunet.maskers import (
    BlockInput,
    ComposedMasker,
    Draw,
    FixedMasks,
    LowRankMasker,
    Masker,
    MaskSchedule,
    MaskTable,
    RandomMasks,
)
from maskunet.network import LayerSpec
from maskunet.targets import describe
from maskunet.training.mask_method import MaskMethod

Unet = diffusers.UNet2DConditionModel
Predict = Callable[..., Tensor]
CROSS, SELF = r"up_blocks\..*attn2\.to_[qv]", r"up_blocks\.1\..*attn1\.to_[qk]|mid_block\..*attn1\.to_q"


def randomised(masker: Masker, seed: int = 1) -> Masker:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in masker.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return masker


def drawn(
    unet: Unet, targets: Any = "decoder-attention", samples: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead = () if samples is None else (samples,)
    return {x.name: torch.rand((*lead, *x.shape), generator=generator) < 0.7 for x in describe(unet, targets).layers}


def schedule(unet: Unet, samples: int = 1, half: str | None = None, seed: int = 2) -> MaskSchedule:
    result = MaskSchedule(describe(unet), [900.0, 500.0, 100.0], samples, half)
    for i in range(3):
        result.set(i, drawn(unet, samples=samples, seed=seed + i))
    return result


BUILDS: dict[str, Callable[[Unet], Masker]] = {
    "low-rank": lambda unet: randomised(LowRankMasker.for_unet(unet, mu.LowRankMaskerConfig(rank=4))),
    "paper's": lambda unet: randomised(mu.MaskGenerator.for_unet(unet)),
    "paper's, convolutions": lambda unet: randomised(
        mu.MaskGenerator.for_unet(unet, mu.MaskGeneratorConfig(targets="decoder-attention-conv", hidden=8))
    ),
    "schedule": schedule,
    "schedule, per prompt": lambda unet: schedule(unet, 2),
    "schedule, conditional half": lambda unet: schedule(unet, half="conditional"),
    "fixed": lambda unet: FixedMasks(drawn(unet, CROSS)),
    "fixed, per prompt": lambda unet: FixedMasks(drawn(unet, samples=2)),
    "table": lambda unet: randomised(MaskTable.for_unet(unet, samples=2)),
    "random": lambda unet: RandomMasks.for_unet(unet, SELF, density=0.7),
}


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("kind", list(BUILDS))
def test_one_active_masker_is_that_masker_alone(sd1: Unet, predict: Predict, kind: str, seed: int | None) -> None:
    def outputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with mu.record(sd1) as trace:
            recorded = predict(sd1, batch=4)
        return predict(sd1, batch=4), recorded, trace.masks

    def same(ours: tuple[Tensor, Tensor, dict[str, Tensor]], alone: tuple[Tensor, Tensor, dict[str, Tensor]]) -> bool:
        names = ours[2].keys() | alone[2].keys()
        return (
            torch.equal(ours[0], alone[0])
            and torch.equal(ours[1], alone[1])
            and all(torch.equal(ours[2][name], alone[2][name]) for name in names)
        )

    masker = BUILDS[kind](sd1)
    base = predict(sd1, batch=4)
    attachment = mu.attach(sd1, masker, seed)
    full = outputs()
    attachment.strength = 0.3
    weak = outputs()
    other, half = FixedMasks(drawn(sd1, "all", seed=9)), schedule(sd1, 1, "conditional", 7)
    attachment = mu.attach(sd1, {"other": other, "it": masker, "half": half}, seed)
    together = predict(sd1, batch=4)
    assert attachment.active_maskers == ("other", "it", "half")
    for strength, alone in ((1.0, full), (0.3, weak)):
        attachment.set_maskers("it", strength)
        assert attachment.active_maskers == ("it",)
        assert same(outputs(), alone)
        attachment.set_maskers(["other", "it"], [0, strength])
        assert torch.equal(predict(sd1, batch=4), alone[0]), "a strength of 0 is as good as off"
    attachment.set_maskers(["other", "it", "half"], 1.0)
    assert torch.equal(predict(sd1, batch=4), together)
    assert not torch.equal(together, full[0])
    mu.detach(sd1)
    assert torch.equal(predict(sd1, batch=4), base)
    assert not any("forward" in vars(module) for module in sd1.modules())


@pytest.mark.parametrize("compose", ["product", "majority"])
def test_masks_of_ones_change_nothing(sd1: Unet, predict: Predict, compose: str) -> None:
    base = predict(sd1)
    ones = {
        "a": LowRankMasker.for_unet(sd1),
        "b": FixedMasks({name: torch.ones_like(mask) for name, mask in drawn(sd1, "all").items()}),
        "c": MaskSchedule(describe(sd1), [500.0], 2, None),
    }
    mu.attach(sd1, ones, compose=compose)
    assert torch.equal(predict(sd1), base)
    masker = BUILDS["low-rank"](sd1)
    mu.attach(sd1, masker)
    alone = predict(sd1)
    mu.attach(sd1, {"ones": ones["c"], "masker": masker}, compose="product")
    assert torch.equal(predict(sd1), alone)
    mu.attach(sd1, {"copy": copy.deepcopy(masker), "masker": masker}, seed=3)
    twice = predict(sd1)
    mu.attach(sd1, masker, seed=3)
    assert torch.equal(predict(sd1), twice), "all maskers see the same noise"


class Watched:
    """Inputs and outputs of masked layers, and what every masker said of them, in one call of the U-Net."""

    def __init__(self, unet: Unet, maskers: Mapping[str, Masker], monkeypatch: pytest.MonkeyPatch) -> None:
        self.unet, self.masks, self.layers = unet, {name: {} for name in maskers}, {}
        for name, masker in maskers.items():
            monkeypatch.setattr(masker, "block_masks", self._watch(name, masker.block_masks))
        for layer in {layer.name for masker in maskers.values() for layer in masker.network.layers}:
            unet.get_submodule(layer).register_forward_hook(
                lambda module, args, output, layer=layer: self.layers.update({layer: (args[0], output)})
            )

    def _watch(self, name: str, block_masks: Callable[..., Any]) -> Callable[..., Any]:
        def watched(block: str, inputs: BlockInput) -> Any:
            masks = block_masks(block, inputs)
            for layer, mask in masks.items():
                shape = self.unet.get_submodule(layer).weight.shape
                values = mask.mask(LayerSpec(layer, tuple(shape)), Draw(), len(inputs.hidden_states)).detach().float()
                values = values if values.ndim > len(shape) else values[None]
                rows = len(inputs.hidden_states)
                self.masks[name][layer] = values.repeat(rows // len(values), *[1] * len(shape))
            return masks

        return watched

    def check(self, factor: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """Compare every row of every layer with the weight times a function of the maskers' masks of that row."""
        assert self.layers
        for layer, (x, output) in self.layers.items():
            module = self.unet.get_submodule(layer)
            for row in range(len(x)):
                masks = {name: masks[layer][row] for name, masks in self.masks.items() if layer in masks}
                weight = module.weight * factor(masks)
                if isinstance(module, torch.nn.Linear):
                    expected = F.linear(x[row], weight, module.bias)
                else:
                    expected = module._conv_forward(x[row : row + 1], weight, module.bias)[0]
                torch.testing.assert_close(output[row], expected, atol=1e-5, rtol=1e-4)


def three(unet: Unet) -> dict[str, Masker]:
    """Maskers of different kinds, layers and numbers of masks."""
    return {name: BUILDS[name](unet) for name in ("paper's, convolutions", "fixed, per prompt", "random")}


def product(masks: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(masks.values())).prod(0)


def majority(masks: dict[str, Tensor]) -> Tensor:
    kept = torch.stack(list(masks.values())).sum(0)
    return (kept >= len(masks) / 2).float()


@pytest.mark.parametrize(("compose", "rule"), [("product", product), ("majority", majority)])
def test_every_row_has_the_masks_composed_by_hand(
    sd1: Unet, predict: Predict, monkeypatch: pytest.MonkeyPatch, compose: str, rule: Callable[..., Tensor]
) -> None:
    built = three(sd1)
    maskers = {"style": built["paper's, convolutions"], "detail": built["fixed, per prompt"], "third": built["random"]}
    watched = Watched(sd1, maskers, monkeypatch)
    attachment = mu.attach(sd1, maskers, compose=compose)
    plain = predict(sd1, batch=4)
    watched.check(rule)
    with mu.record(sd1) as trace:
        torch.testing.assert_close(predict(sd1, batch=4), plain, atol=1e-5, rtol=1e-5)
    for layer, mask in trace.masks.items():
        masks = {name: masks[layer] for name, masks in watched.masks.items() if layer in masks}
        assert torch.equal(mask[torch.arange(4) % len(mask)].float(), rule(masks))
    attachment.set_maskers(["detail", "third"])
    for masks in watched.masks.values():
        masks.clear()
    predict(sd1, batch=4)
    watched.check(lambda masks: rule(masks) if masks else torch.ones(()))


def test_each_masker_has_its_own_strength(sd1: Unet, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    built = three(sd1)
    maskers = {"style": built["paper's, convolutions"], "detail": built["fixed, per prompt"], "third": built["random"]}
    watched = Watched(sd1, maskers, monkeypatch)

    def weakened(strengths: dict[str, float]) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda masks: torch.stack([1 - strengths[n] * (1 - m) for n, m in masks.items()]).prod(0)

    attachment = mu.attach(sd1, maskers, strength={"style": 0.7, "third": 0.4})
    assert attachment.strength == {"style": 0.7, "detail": 1.0, "third": 0.4}
    plain = predict(sd1)
    watched.check(weakened({"style": 0.7, "detail": 1.0, "third": 0.4}))
    with mu.record(sd1) as trace:
        torch.testing.assert_close(predict(sd1), plain, atol=1e-5, rtol=1e-5)
    name = next(layer for layer in trace.masks if all(layer in masks for masks in watched.masks.values()))
    kept = torch.stack([masks[name] for masks in watched.masks.values()]).prod(0)
    assert torch.equal(trace.masks[name].float(), kept), "a record has the masks, not their strengths"
    attachment.strength = lambda timestep: 0.5 if timestep == 500 else 1.0  # one strength for the composed mask
    predict(sd1)
    watched.check(lambda masks: 1 - 0.5 * (1 - product(masks)))
    attachment.strength = {"style": lambda timestep: 0.2, "detail": {"up_blocks.1": 0.0, "up_blocks.2": 1.0}}
    predict(sd1)
    for layer in [layer for layer in watched.layers if "up_blocks.2" not in layer]:
        del watched.layers[layer]
    watched.check(weakened({"style": 0.2, "detail": 1.0, "third": 1.0}))
    attachment.strength = 0.6
    attachment.set_maskers(["style", "detail"], strengths=[1.0, 0.5])
    assert attachment.strength == {"style": 1.0, "detail": 0.5, "third": 0.6}
    attachment.set_maskers("third")
    assert attachment.strength == {"style": 1.0, "detail": 0.5, "third": 0.6}


def test_strengths_in_double_precision_are_exact(sd1: Unet, inputs: Callable[..., dict[str, Any]]) -> None:
    unet = sd1.double()
    call = {k: v.double() if v.is_floating_point() else v for k, v in inputs(unet).items()}
    a, b = drawn(unet, seed=1), drawn(unet, seed=2)
    mu.attach(unet, {"a": FixedMasks(a), "b": FixedMasks(b)}, strength={"a": 0.3, "b": 0.1})
    by_hand = copy.deepcopy(unet)
    mu.detach(by_hand)
    with torch.no_grad():
        for name, mask in a.items():
            factor = (1 - 0.3 * (~mask).double()) * (1 - 0.1 * (~b[name]).double())
            by_hand.get_submodule(name).weight.mul_(factor)
        torch.testing.assert_close(unet(**call).sample, by_hand(**call).sample, atol=1e-12, rtol=1e-12)


def test_rows_that_a_masker_leaves_alone_have_no_vote(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under guidance the second masker masks the conditional rows alone; the third makes no majority without it."""
    maskers = {
        "a": FixedMasks(drawn(pipe.unet, seed=1)),
        "b": schedule(pipe.unet, half="conditional"),
        "c": FixedMasks(drawn(pipe.unet, samples=2, seed=5)),
    }
    mu.attach(pipe, maskers, compose="majority")
    calls: list[tuple[str, float, Tensor, Tensor]] = []
    timesteps: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda m, args, kwargs: timesteps.append(float(args[1])), with_kwargs=True)
    for layer in describe(pipe.unet).layers:
        pipe.unet.get_submodule(layer.name).register_forward_hook(
            lambda m, args, output, name=layer.name: calls.append((name, timesteps[-1], args[0], output))
        )
    pipe(["a b", "c d"], num_images_per_prompt=2, num_inference_steps=2, guidance_scale=4.0, output_type="latent")
    assert len(calls) == 2 * len(describe(pipe.unet).layers)
    for name, timestep, x, output in calls:
        module = pipe.unet.get_submodule(name)
        for row in range(8):
            prompt = row % 4 // 2
            votes = [maskers["a"][name].float(), maskers["c"][name][prompt].float()]
            if row >= 4:
                votes.append(maskers["b"].get(maskers["b"].nearest(timestep), name)[0].float())
            kept = (sum(votes) >= len(votes) / 2).float()
            expected = F.linear(x[row], module.weight * kept, module.bias)
            torch.testing.assert_close(output[row], expected, atol=1e-5, rtol=1e-4)


def test_threads_see_all_or_nothing_of_a_switch(sd1: Unet, inputs: Callable[..., dict[str, Any]]) -> None:
    attachment = mu.attach(sd1, {"a": BUILDS["low-rank"](sd1), "b": FixedMasks(drawn(sd1, "all"))})
    choices: list[tuple[Any, Any]] = [("a", 1.0), ("b", 0.5), (["a", "b"], [0.3, 0.9])]
    request = inputs(sd1)
    expected = []
    with torch.no_grad():
        for choice in choices:
            attachment.set_maskers(*choice)
            expected.append(sd1(**request).sample)
    results: list[Tensor] = []

    @torch.no_grad()
    def serve() -> None:
        results.extend(sd1(**request).sample for _ in range(10))

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for choice in choices:
            attachment.set_maskers(*choice)
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(any(torch.equal(result, e) for e in expected) for result in results)


def test_a_switch_holds_during_a_run(pipe: Any, draw_latents: Callable[..., Tensor]) -> None:
    """A callback switches maskers between steps, as LoRA users do."""
    attachment = mu.attach(pipe, {"a": BUILDS["low-rank"](pipe.unet), "b": schedule(pipe.unet)})

    def run(second: Callable[[], None]) -> Tensor:
        def switch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            second()
            return tensors

        generator = torch.Generator().manual_seed(1)
        return pipe(
            "a b", num_inference_steps=2, generator=generator, output_type="latent", callback_on_step_end=switch
        ).images

    attachment.set_maskers("a")
    switched = run(lambda: attachment.set_maskers("b"))
    mu.attach(pipe, BUILDS["low-rank"](pipe.unet))
    assert torch.equal(run(lambda: mu.attach(pipe, schedule(pipe.unet)) and None), switched)  # type: ignore[func-returns-value]


def test_copies_and_disabled(sd1: Unet, predict: Predict) -> None:
    base = predict(sd1)
    attachment = mu.attach(sd1, {"a": BUILDS["low-rank"](sd1), "b": schedule(sd1)})
    both = predict(sd1)
    copied = copy.deepcopy(sd1)
    attachment.set_maskers("a")
    only_a = predict(sd1)
    with mu.disabled(sd1):
        assert torch.equal(predict(sd1), base)
    assert torch.equal(predict(copied), both), "the copy follows the original's switches"
    mu.attaching.attachment_of(copied).set_maskers("a")
    assert torch.equal(predict(copied), only_a)
    with torch.no_grad():
        for p in sd1.parameters():
            p.zero_()
    assert torch.equal(predict(copied), only_a)
    mu.detach(copied)
    assert torch.equal(predict(copied), base)
    assert mu.attaching.attachment_of(sd1) is attachment


def test_attaching_elsewhere_does_not_share_switches(sd1: Unet, make_unet: Any, predict: Predict) -> None:
    composed = ComposedMasker({"a": BUILDS["low-rank"](sd1), "b": schedule(sd1)})
    other = make_unet("sd1")
    first, second = mu.attach(sd1, composed), mu.attach(other, composed)
    both = predict(other)
    first.set_maskers("a")
    assert second.active_maskers == ("a", "b")
    assert torch.equal(predict(other), both)


@pytest.mark.parametrize("way", ["blocks", "whole"])
def test_gradient_checkpointing(sd1: Unet, inputs: Callable[..., dict[str, Any]], way: str) -> None:
    a, b = BUILDS["low-rank"](sd1), randomised(LowRankMasker.for_unet(sd1), seed=8)
    attachment = mu.attach(sd1, ComposedMasker({"a": a, "b": b, "c": schedule(sd1)}).train(), strength={"b": 0.5})

    def gradients(is_checkpointed: bool) -> list[Tensor]:
        attachment.reseed(3)
        attachment.masker.zero_grad()
        call = inputs(sd1)
        call["sample"].requires_grad_(True)
        if is_checkpointed and way == "whole":
            out = checkpoint(lambda x: sd1(**{**call, "sample": x}).sample, call["sample"], use_reentrant=False)
        else:
            out = sd1(**call).sample
        out.square().mean().backward()
        grads = [p.grad.clone() for p in attachment.masker.parameters() if p.grad is not None]
        assert len(grads) == len(list(attachment.masker.parameters()))
        return grads

    plain = gradients(False)
    assert all(g.abs().max() > 0 for g in plain)
    if way == "blocks":
        sd1.enable_gradient_checkpointing()
        sd1.train()
    for x, y in zip(plain, gradients(True), strict=True):
        torch.testing.assert_close(x, y, atol=1e-7, rtol=1e-5)


def test_saved_and_loaded_together(sd1: Unet, predict: Predict, tmp_path: Path) -> None:
    built = {**three(sd1), "schedule": schedule(sd1, half="conditional")}
    maskers = {name.split(",")[0].replace("'", ""): masker for name, masker in built.items()}
    composed = ComposedMasker(maskers, "majority")
    mu.attach(sd1, composed)
    expected = predict(sd1, batch=4)
    folder = composed.save_pretrained(tmp_path / "both")
    loaded = mu.load(folder, sd1)
    assert isinstance(loaded, ComposedMasker)
    assert (loaded.names, loaded.compose) == (("papers", "fixed", "random", "schedule"), "majority")
    assert [type(m) for m in loaded.maskers.values()] == [type(m) for m in maskers.values()]
    assert loaded.network == composed.network
    mu.attach(sd1, folder)
    assert torch.equal(predict(sd1, batch=4), expected)
    card = (folder / "README.md").read_text()
    assert "majority" in card
    assert len(card) < 20_000
    # One masker of it, alone again.
    mu.attach(sd1, loaded.maskers["papers"])
    alone = predict(sd1)
    mu.attach(sd1, maskers["papers"])
    assert torch.equal(predict(sd1), alone)


def test_attaching_folders_by_name(sd1: Unet, predict: Predict, tmp_path: Path) -> None:
    maskers = {"style": BUILDS["low-rank"](sd1), "detail": schedule(sd1)}
    mu.attach(sd1, maskers)
    expected = predict(sd1)
    folders = {name: masker.save_pretrained(tmp_path / name) for name, masker in maskers.items()}
    mu.attach(sd1, folders)
    assert torch.equal(predict(sd1), expected)
    with pytest.raises(CheckpointError, match=r"masker 'detail': expected a masker's folder") as caught:
        mu.attach(sd1, {**folders, "detail": tmp_path / "missing"})
    assert "\n" not in str(caught.value)


def test_a_masker_for_another_network_is_named(sd1: Unet, make_unet: Any) -> None:
    other = LowRankMasker.for_unet(make_unet("sdxl"))
    with pytest.raises(TargetError, match=r"masker 'b': the masker was made for another network"):
        mu.attach(sd1, {"a": LowRankMasker.for_unet(sd1), "b": other})
    layer = describe(sd1).layers[0].name
    with pytest.raises(TargetError, match=r"maskers for one U-Net, 'b' masks up_blocks.1 of another one"):
        ComposedMasker({"a": LowRankMasker.for_unet(sd1), "b": FixedMasks({layer: torch.ones(8, 8)})})
    assert not any("forward" in vars(module) for module in sd1.modules())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: {}, "at least one masker"),
        (lambda m: {1: m}, "names of maskers to be letters"),
        (lambda m: {"up_blocks.1": m}, "names of maskers to be letters"),
        (lambda m: {"a/b": m}, "names of maskers to be letters"),
        (lambda m: {"a": m, "b": m}, "one stands there twice"),
        (lambda m: {"a": 3}, r"masker 'a': expected a masker, its folder"),
        (lambda m: {"a": None}, r"masker 'a': expected a masker, its folder"),
        (lambda m: {"a": ComposedMasker({"b": m})}, "single maskers to compose, 'a' is composed of b"),
    ],
)
def test_bad_compositions(sd1: Unet, build: Callable[[Masker], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        mu.attach(sd1, build(LowRankMasker.for_unet(sd1)))
    assert "\n" not in str(caught.value)
    assert not any("forward" in vars(module) for module in sd1.modules())


def test_bad_choices_change_nothing(sd1: Unet, predict: Predict) -> None:
    maskers = {"style": BUILDS["low-rank"](sd1), "detail": schedule(sd1)}
    with pytest.raises(SettingError, match="compose to be one of product, majority, got 'sum'"):
        mu.attach(sd1, maskers, compose="sum")
    with pytest.raises(SettingError, match="several maskers by name with compose='majority', got one"):
        mu.attach(sd1, maskers["style"], compose="majority")
    for strength in ({"up_blocks.1": 0.5}, {"styles": 0.5}, {1: 0.5}):
        with pytest.raises(SettingError, match=r"maskers' names \(style, detail\), got .* inside"):
            mu.attach(sd1, maskers, strength=strength)
    for strength in ({"style": 1.5}, {"style": "much"}, {"style": {"up_blocks.1": 2}}):
        with pytest.raises(SettingError, match=r"number >= 0 and <= 1"):
            mu.attach(sd1, maskers, strength=strength)
    with pytest.raises(SettingError, match="one strength for maskers composed by majority"):
        mu.attach(sd1, maskers, strength={"style": 0.5}, compose="majority")
    assert not any("forward" in vars(module) for module in sd1.modules())
    attachment = mu.attach(sd1, maskers, strength={"style": 0.5})
    expected = predict(sd1)
    for names, strengths in (
        ("nothing", None), ([], None), (["style", "style"], None), (3, None), ([1], None), ("style", 2),
        ("style", [1, 1]), (["style", "detail"], [1]), ("style", [{"style": 0.5}]), ("style", float("nan")),
    ):  # fmt: skip
        with pytest.raises(SettingError) as caught:
            attachment.set_maskers(names, strengths)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert attachment.active_maskers == ("style", "detail")
        assert attachment.strength == {"style": 0.5, "detail": 1.0}
    assert torch.equal(predict(sd1), expected)
    single = mu.attach(sd1, maskers["style"])
    assert single.active_maskers == ()
    with pytest.raises(SettingError, match="attached by name to choose among, got one LowRankMasker"):
        single.set_maskers("style")


def test_a_composition_is_not_trained(pipe: Any, tmp_path: Path) -> None:
    composed = ComposedMasker({"a": LowRankMasker.for_unet(pipe.unet), "b": schedule(pipe.unet)})
    with pytest.raises(SettingError, match="one masker to train, got a composition of a, b") as caught:
        mu.train(pipe, composed, "shapes", output_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingError, match="got a composition of a, b"):
        mu.train(pipe, composed.save_pretrained(tmp_path / "both"), "shapes", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingError, match="train them one by one"):
        MaskMethod(composed)
