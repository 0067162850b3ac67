"""Masks written into the weights, and taken out again bit for bit."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel as Unet
from torch import Tensor, nn

import maskunet as mu
from maskunet.errors import CheckpointError, SettingError, TargetError
from maskunet.maskers import FixedMasks, Masker, MaskSchedule
from maskunet.merging import mask_choice, merged_masks
from maskunet.operators.implementation import using
from tiny_pipelines import SD1

Predict = Callable[..., Tensor]


def state_of(unet: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in unet.state_dict().items()}


def bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def is_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states have the same bits, signs of zeros included."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(bits(a[k]), bits(b[k])) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_merged_is_attached_and_unmerged_is_the_base(
    constant: Masker, sd1: Unet, inputs: Callable[..., dict[str, Any]], dtype: torch.dtype
) -> None:
    sd1.to(dtype)
    arguments = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(sd1).items()}

    def predict() -> Tensor:
        with torch.no_grad():
            return sd1(**arguments).sample

    before, base = state_of(sd1), predict()
    mu.attach(sd1, constant)
    with using("reference"):
        attached = predict()
    mu.detach(sd1)
    merged = mu.merge(sd1, constant)
    assert torch.equal(predict(), attached)
    assert not torch.equal(attached, base)
    assert merged.disagreement == 0
    changed = {k for k, v in sd1.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"{layer.name}.weight" for layer in constant.network.layers}
    mu.unmerge(sd1)
    assert is_same(state_of(sd1), before)
    assert torch.equal(predict(), base)


def test_weights_are_multiplied_by_the_masks(sd1: Unet) -> None:
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    mask = torch.arange(32 * 32).reshape(32, 32) % 4 != 0
    weight = sd1.get_submodule(name).weight
    before, address = weight.clone(), weight.data_ptr()
    merged = mu.merge(sd1, FixedMasks({name: mask}))
    assert torch.equal(weight, before * mask)
    assert sd1.get_submodule(name).weight.data_ptr() == address
    assert merged.density == 0.75
    assert merged.nbytes == 32 * 32 // 8 + 256 * 4  # one bit per weight, and a quarter of the values
    assert repr(merged) == "MergedMasks(masker='FixedMasks', strength=1.0, density=0.75, disagreement=0.0)"


@pytest.mark.parametrize("strength", [0, 0.3, {"up_blocks.1": 0.5}])
def test_a_strength_is_that_of_attach(masker: Masker, sd1: Unet, predict: Predict, strength: Any) -> None:
    before, base = state_of(sd1), predict(sd1)
    mu.attach(sd1, masker, strength=strength)
    attached = predict(sd1)
    mu.detach(sd1)
    mu.merge(sd1, masker, strength)
    torch.testing.assert_close(predict(sd1), attached, atol=1e-5, rtol=1e-5)
    assert torch.equal(predict(sd1), base) is (strength == 0)
    mu.unmerge(sd1)
    assert is_same(state_of(sd1), before)


def test_a_second_merge_and_a_merge_below_a_masker_are_refused(masker: Masker, sd1: Unet, predict: Predict) -> None:
    mu.attach(sd1, masker)
    with pytest.raises(TargetError, match=r"one is attached; call maskunet\.detach first"):
        mu.merge(sd1, masker)
    mu.detach(sd1)
    mu.merge(sd1, masker)
    state = state_of(sd1)
    with pytest.raises(TargetError, match=r"those of a LowRankMasker are merged; call maskunet\.unmerge first"):
        mu.merge(sd1, masker)
    assert is_same(state_of(sd1), state)
    mu.unmerge(sd1)
    with pytest.raises(TargetError, match="none are merged"):
        mu.unmerge(sd1)


def test_masks_attached_to_a_merged_model_act_on_its_weights(masker: Masker, sd1: Unet, predict: Predict) -> None:
    base = predict(sd1)
    other = FixedMasks({layer.name: torch.rand(layer.shape) < 0.8 for layer in masker.network.layers})
    mu.merge(sd1, masker)
    merged = predict(sd1)
    mu.attach(sd1, other)
    both = predict(sd1)
    mu.detach(sd1)
    assert torch.equal(predict(sd1), merged)
    mu.unmerge(sd1)
    mu.attach(sd1, other)
    alone = predict(sd1)
    mu.detach(sd1)
    product = {n: other[n] & mask for n, mask in mask_choice.constant_masks(masker, torch.device("cpu")).items()}
    mu.merge(sd1, FixedMasks(product))
    torch.testing.assert_close(predict(sd1), both, atol=1e-6, rtol=0)
    mu.unmerge(sd1)
    assert torch.equal(predict(sd1), base)
    assert not torch.equal(alone, both)


@pytest.mark.parametrize(
    ("build", "conditions"),
    [
        (lambda pipe: mu.LowRankMasker.for_unet(pipe), "timestep and the sample"),
        (lambda pipe: mu.LowRankMasker.for_unet(pipe, mu.LowRankMaskerConfig(use_sample=False)), "timestep"),
        (lambda pipe: mu.MaskGenerator.for_unet(pipe, mu.MaskGeneratorConfig(use_timestep=False)), "sample"),
        (lambda pipe: MaskSchedule(mu.LowRankMasker.for_unet(pipe).network, [9.0, 1.0], 2), "timestep and the sample"),
        (lambda pipe: MaskSchedule(mu.LowRankMasker.for_unet(pipe).network, [9.0], 1, "conditional"), "sample"),
        (lambda pipe: mu.maskers.RandomMasks.for_unet(pipe), "timestep"),
        (lambda pipe: mu.maskers.MaskTable.for_unet(pipe, samples=2), "sample"),
    ],
)
def test_masks_that_depend_on_something_are_merged_only_when_asked(pipe: Any, build: Any, conditions: str) -> None:
    before = state_of(pipe.unet)
    with pytest.raises(SettingError, match=rf"depend on the {conditions}; pass prompts to merge their majority"):
        mu.merge(pipe, build(pipe))
    assert is_same(state_of(pipe.unet), before)


def test_bad_arguments_are_refused_and_nothing_is_written(masker: Masker, pipe: Any) -> None:
    before = state_of(pipe.unet)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (3, {}, "a hub id or a bundled name to merge, got int"),
        (masker, {"strength": 1.1}, r"strength to be a number >= 0 and <= 1, got 1.1"),
        (masker, {"strength": lambda timestep: 1.0}, "got a function of the timestep"),
        (masker, {"strength": {"up_blocks.9": 1}}, r"blocks \(up_blocks"),
        (mu.LowRankMasker.for_unet(pipe), {"prompts": []}, "at least one prompt"),
        (mu.LowRankMasker.for_unet(pipe), {"prompts": ["a"], "num_inference_steps": 0}, "num_inference_steps"),
        (mu.LowRankMasker.for_unet(pipe).train(), {}, "call masker.eval"),
    ]
    for source, options, message in cases:
        with pytest.raises(mu.MaskUNetError, match=message) as caught:
            mu.merge(pipe, source, **options)
        assert "\n" not in str(caught.value)
    with torch.no_grad():
        next(masker.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="finite numbers, got others in blocks"):
        mu.merge(pipe, masker)
    with pytest.raises(TargetError, match="expected a Stable Diffusion pipeline, got UNet2DConditionModel"):
        mu.merge(pipe.unet, mu.LowRankMasker.for_unet(pipe), prompts=["a"])
    assert is_same(state_of(pipe.unet), before)
    assert not any("forward" in module.__dict__ for module in pipe.unet.modules())


def test_a_merge_that_fails_halfway_leaves_the_weights(
    masker: Masker, sd1: Unet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = state_of(sd1), []

    def half_written(weight: Tensor, mask: Tensor, strength: float) -> None:
        calls.append(1)
        weight[~mask] = 7
        if len(calls) == 3:
            raise MemoryError

    monkeypatch.setattr(merged_masks, "mask_weight", half_written)
    with pytest.raises(MemoryError):
        mu.merge(sd1, masker)
    assert is_same(state_of(sd1), before)
    monkeypatch.undo()
    mu.merge(sd1, masker)


def test_a_merged_copy_is_its_own(masker: Masker, sd1: Unet, predict: Predict) -> None:
    before, base = state_of(sd1), predict(sd1)
    mu.merge(sd1, masker)
    merged = predict(sd1)
    buffer = io.BytesIO()
    torch.save(sd1, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(sd1), pickle.loads(pickle.dumps(sd1)), torch.load(buffer, weights_only=False)]
    for copied in copies:
        assert torch.equal(predict(copied), merged)
        mu.unmerge(copied)
        assert is_same(state_of(copied), before)
    assert torch.equal(predict(sd1), merged)
    mu.unmerge(sd1)
    assert torch.equal(predict(sd1), base)


def test_a_saved_merged_model_is_the_merged_one(masker: Masker, sd1: Unet, predict: Predict, tmp_path: Any) -> None:
    mu.merge(sd1, masker)
    sd1.save_pretrained(tmp_path)
    loaded = Unet.from_pretrained(tmp_path)
    assert torch.equal(predict(loaded), predict(sd1))
    with pytest.raises(TargetError, match="a model that was saved after a merge holds nothing to undo it with"):
        mu.unmerge(loaded)


@pytest.mark.parametrize("change", ["training", "state dict", "dtype"])
def test_weights_that_were_changed_since_are_not_undone(masker: Masker, sd1: Unet, change: str) -> None:
    original = state_of(sd1)
    mu.merge(sd1, masker)
    merged = state_of(sd1)
    weight = sd1.get_submodule(masker.network.layers[-1].name).weight
    if change == "training":
        with torch.no_grad():
            weight.view(-1)[7] += 1
    elif change == "state dict":
        sd1.load_state_dict(original)
    else:
        sd1.to(torch.bfloat16)
    changed = state_of(sd1)
    with pytest.raises(TargetError, match="load the model again") as caught:
        mu.unmerge(sd1)
    assert "\n" not in str(caught.value)
    assert is_same(state_of(sd1), changed)
    if change != "dtype":
        sd1.load_state_dict(merged)
        mu.unmerge(sd1)
        assert is_same(state_of(sd1), original)


def test_memory_formats_devices_and_gradients_do_not_matter(masker: Masker, sd1: Unet, predict: Predict) -> None:
    before, base = state_of(sd1), predict(sd1)
    sd1.requires_grad_(True)
    mu.merge(sd1, masker)
    sd1.to(memory_format=torch.channels_last)
    mu.unmerge(sd1)
    assert is_same(state_of(sd1), before)
    sd1.to(memory_format=torch.contiguous_format)
    assert torch.equal(predict(sd1), base)
    assert all(p.requires_grad and p.is_leaf and p.grad is None for p in sd1.parameters())


def test_weights_made_in_inference_mode(masker: Masker, predict: Predict) -> None:
    with torch.inference_mode():
        unet = Unet(**SD1)
        before = state_of(unet)
    mu.merge(unet, masker)
    assert not is_same(state_of(unet), before)
    mu.unmerge(unet)
    assert is_same(state_of(unet), before)
    normal = Unet(**SD1)
    before = state_of(normal)
    with torch.inference_mode():
        mu.merge(normal, masker)
    mu.unmerge(normal)
    assert is_same(state_of(normal), before)


def lora(kind: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights="gaussian", use_dora=kind == "dora")


def test_a_lora_beside_the_weights_stays_beside_them(masker: Masker, sd1: Unet, predict: Predict) -> None:
    sd1.add_adapter(lora("lora"))
    with torch.no_grad():
        for name, p in sd1.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    before, base = state_of(sd1), predict(sd1)
    mu.attach(sd1, masker)
    attached = predict(sd1)
    mu.detach(sd1)
    mu.merge(sd1, masker)
    torch.testing.assert_close(predict(sd1), attached, atol=1e-6, rtol=0)
    assert not torch.equal(attached, base)
    # A LoRA fused after the merge is in the weights, which can then not be undone; unfused, they can if no bit was lost.
    sd1.fuse_lora()
    with pytest.raises(TargetError, match="Call unfuse_lora"):
        mu.unmerge(sd1)
    sd1.unfuse_lora()
    with contextlib.suppress(TargetError):
        mu.unmerge(sd1)
        assert is_same(state_of(sd1), before)


def test_a_fused_lora_dora_and_fused_projections_are_refused(masker: Masker, sd1: Unet) -> None:
    before = state_of(sd1)
    dora = copy.deepcopy(sd1)
    dora.add_adapter(lora("dora"))
    with pytest.raises(TargetError, match="expected no DoRA on up_blocks"):
        mu.merge(dora, masker)
    fused = copy.deepcopy(sd1)
    fused.add_adapter(lora("lora"))
    fused.fuse_lora()
    with pytest.raises(TargetError, match="Call unfuse_lora"):
        mu.merge(fused, masker)
    sd1.fuse_qkv_projections()
    with pytest.raises(TargetError, match="Call unfuse_qkv_projections"):
        mu.merge(sd1, masker)
    sd1.unfuse_qkv_projections()
    mu.merge(sd1, masker)
    mu.unmerge(sd1)
    assert is_same({k: v for k, v in state_of(sd1).items() if k in before}, before)


def test_weights_out_of_memory_or_shared_are_refused(masker: Masker, sd1: Unet, pipe: Any) -> None:
    meta = copy.deepcopy(sd1).to("meta")
    shared = copy.deepcopy(sd1)
    name = next(layer.name for layer in masker.network.layers if layer.name.endswith("attn1.to_q"))
    attention = shared.get_submodule(name.rpartition(".")[0])
    attention.to_k.weight = attention.to_q.weight
    quantised = copy.deepcopy(sd1)
    quantised.get_submodule(name).weight.data = quantised.get_submodule(name).weight.data.to(torch.float8_e4m3fn)

    class Quantised(Tensor):
        pass

    subclass = copy.deepcopy(sd1)
    layer = subclass.get_submodule(name)
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Quantised), requires_grad=False)
    foreign = copy.deepcopy(sd1)
    parent = foreign.get_submodule(name.rpartition(".")[0])
    parent.to_q = type("Linear4bit", (nn.Linear,), {})(32, 32)
    grouped = copy.deepcopy(sd1)
    diffusers.hooks.apply_group_offloading(
        grouped, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
    )
    cases = [
        (meta, "on the meta device; merge or unmerge before enable_sequential_cpu_offload"),
        (shared, "shares them with another layer"),
        (quantised, "weights in float8_e4m3fn, in which layers do not compute"),
        (subclass, r"has torch.float32 \(Quantised\)"),
        (foreign, "which masks cannot read"),
        (grouped, "expected a U-Net without diffusers' group offload"),
    ]
    for unet, message in cases:
        before = {} if unet is meta else state_of(unet)
        with pytest.raises(TargetError, match=message) as caught:
            mu.merge(unet, masker)
        assert "\n" not in str(caught.value)
        assert unet is meta or all(torch.equal(v.float(), before[k].float()) for k, v in unet.state_dict().items())


def test_a_model_that_is_offloaded_as_a_whole(masker: Masker, pipe: Any, predict: Predict) -> None:
    from accelerate import cpu_offload_with_hook

    before, base = state_of(pipe.unet), predict(pipe.unet)
    mu.merge(pipe.unet, masker)
    merged = predict(pipe.unet)
    mu.unmerge(pipe.unet)
    _, hook = cpu_offload_with_hook(pipe.unet, "cpu")
    mu.merge(pipe, masker)
    assert torch.equal(predict(pipe.unet), merged)
    hook.offload()
    mu.unmerge(pipe)
    assert is_same(state_of(pipe.unet), before)
    assert torch.equal(predict(pipe.unet), base)


def test_a_folder_is_a_source_too(masker: Masker, sd1: Unet, predict: Predict, tmp_path: Any) -> None:
    mu.merge(sd1, masker)
    merged = predict(sd1)
    mu.unmerge(sd1)
    assert mu.merge(sd1, masker.save_pretrained(tmp_path)).masker == "LowRankMasker"
    assert torch.equal(predict(sd1), merged)


def test_a_composition_of_constant_maskers_is_merged(sd1: Any) -> None:
    """Its masks are the product; it depends on what any of its maskers depends on."""
    layers = mu.LowRankMasker.for_unet(sd1).network.layers
    first, second = (FixedMasks({x.name: torch.rand(x.shape) < 0.8 for x in layers}) for _ in range(2))
    composed = mu.maskers.ComposedMasker({"first": first, "second": second})
    assert composed.conditions == ()
    weights = {layer.name: sd1.get_submodule(layer.name).weight.clone() for layer in composed.network.layers}
    mu.merge(sd1, composed)
    for name, weight in weights.items():
        assert torch.equal(sd1.get_submodule(name).weight, weight * first[name] * second[name])
    mu.unmerge(sd1)
    with pytest.raises(SettingError, match="expected one strength for a composition"):
        mu.merge(sd1, composed, strength={"first": 0.5})
    conditional = mu.LowRankMasker.for_unet(sd1)
    assert mu.maskers.ComposedMasker({"a": first, "b": conditional}).conditions == ("timestep", "sample")
