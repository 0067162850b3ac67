"""Masks beside what else changes a U-Net: LoRA, processors, checkpointing, offload and compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig
from torch import Tensor

import maskunet as mu
from maskunet import targets
from maskunet.errors import TargetError
from maskunet.maskers import FixedMasks, Masker, RandomMasks

Unet = UNet2DConditionModel
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


def lora(*modules: str) -> LoraConfig:
    return LoraConfig(r=4, target_modules=list(modules or PROJECTIONS), init_lora_weights=False)


def add_lora(unet: Unet, config: LoraConfig) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet.add_adapter(config)
    unet.requires_grad_(False).eval()


def spread_generator(unet: Unet) -> mu.MaskGenerator:
    masker = mu.MaskGenerator.for_unet(unet, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return masker


@pytest.fixture
def masker(sd1: Unet) -> mu.MaskGenerator:
    return spread_generator(sd1)


def test_a_lora_before_or_after_is_the_same(
    make_unet: Callable[[str], Unet], masker: mu.MaskGenerator, predict: Callable[..., Tensor]
) -> None:
    before, after, alone = make_unet("sd1"), make_unet("sd1"), make_unet("sd1")
    mu.attach(alone, masker)
    masked = predict(alone)
    add_lora(before, lora())
    adapted = predict(before)
    mu.attach(before, masker)
    mu.attach(after, masker)
    add_lora(after, lora())
    both = predict(before)
    assert torch.equal(predict(after), both)
    assert (both - adapted).abs().max() > 1e-3
    assert (both - masked).abs().max() > 1e-3
    for unet in (before, after):
        with mu.disabled(unet):
            assert torch.equal(predict(unet), adapted)
        mu.detach(unet)
        assert torch.equal(predict(unet), adapted)
        unet.delete_adapters("default")
    assert torch.equal(predict(before), predict(after))


def test_a_mask_leaves_the_lora_itself_alone(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    add_lora(sd1, lora())
    names = [layer.name for layer in targets.describe(sd1).layers]
    mu.attach(sd1, FixedMasks({n: torch.zeros_like(sd1.get_submodule(n).weight) for n in names}))
    masked = predict(sd1)
    mu.detach(sd1)
    with torch.no_grad():
        for name in names:
            sd1.get_submodule(name).base_layer.weight.zero_()
    torch.testing.assert_close(predict(sd1), masked, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("modules", [("to_q",), ("to_v", "to_out.0"), ("to_out.0",)])
def test_a_fused_lora_is_refused(
    make_unet: Callable[[str], Unet], masker: mu.MaskGenerator, predict: Callable[..., Tensor], modules: tuple[str]
) -> None:
    unet, fused_later = make_unet("sd1"), make_unet("sd1")
    add_lora(unet, lora(*modules))
    unet.fuse_lora()
    with pytest.raises(TargetError, match=rf"{modules[0]} has one fused into them.*unfuse_lora\(\)"):
        mu.attach(unet, masker)
    unet.unfuse_lora()
    mu.attach(unet, masker)
    mu.attach(fused_later, masker)
    add_lora(fused_later, lora(*modules))
    fused_later.fuse_lora()
    with pytest.raises(TargetError, match="fused into them"):
        predict(fused_later)


def test_a_fused_lora_on_a_masked_convolution_is_refused(sd1: Unet) -> None:
    add_lora(sd1, lora("conv1"))
    sd1.fuse_lora()
    with pytest.raises(TargetError, match="conv1 has one fused into them"):
        mu.attach(sd1, RandomMasks.for_unet(sd1, "decoder-attention-conv"))


def test_fused_projections_are_refused(sd1: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.attach(sd1, masker)
    masked = predict(sd1)
    sd1.fuse_qkv_projections()
    with pytest.raises(TargetError, match=r"up_blocks\.1\..*fused projections.*unfuse_qkv_projections\(\)"):
        predict(sd1)
    with mu.disabled(sd1):
        torch.testing.assert_close(predict(sd1), base, atol=1e-5, rtol=1e-5)
    mu.detach(sd1)
    with pytest.raises(TargetError, match="fused projections"):
        mu.attach(sd1, masker)
    sd1.unfuse_qkv_projections()
    mu.attach(sd1, masker)
    assert torch.equal(predict(sd1), masked)


def test_attention_processors_agree(sd1: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor]) -> None:
    mu.attach(sd1, masker)
    outputs = []
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        sd1.set_attn_processor(processor)
        outputs.append(predict(sd1))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


def gradients(unet: Unet, masker: Masker, calls: list[dict[str, Any]]) -> list[Tensor]:
    attachment = mu.attach(unet, masker.train(), seed=2)
    attachment.reseed(2)
    masker.zero_grad()
    loss = torch.zeros(())
    for given in calls:
        loss = loss + unet(**given).sample.square().mean()
    loss.backward()
    return [p.grad.clone() for p in masker.parameters() if p.grad is not None]


@pytest.mark.parametrize("count", [1, 2])
def test_gradient_checkpointing_gives_the_same_gradients(
    sd1: Unet, masker: mu.MaskGenerator, inputs: Callable[..., dict[str, Any]], count: int
) -> None:
    calls = [inputs(sd1, seed=i, timestep=400 * i + 1) for i in range(count)]
    sd1.train()
    expected = gradients(sd1, masker, calls)
    sd1.enable_gradient_checkpointing()
    found = gradients(sd1, masker, calls)
    assert len(found) == len(list(masker.parameters()))
    for ours, plain in zip(found, expected, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(ours, plain, atol=1e-7, rtol=1e-4)


def test_a_base_prediction_between_forward_and_backward(
    sd1: Unet, masker: mu.MaskGenerator, inputs: Callable[..., dict[str, Any]], predict: Callable[..., Tensor]
) -> None:
    sd1.train()
    expected = gradients(sd1, masker, [inputs(sd1)])
    sd1.enable_gradient_checkpointing()
    mu.attach(sd1, masker.train(), seed=2)
    masker.zero_grad()
    loss = sd1(**inputs(sd1)).sample.square().mean()
    with mu.disabled(sd1):
        predict(sd1, seed=7)
    loss.backward()
    for parameter, plain in zip(masker.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, plain, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("kind", ["layers", "model"])
@pytest.mark.parametrize("first", ["offload", "attach"])
def test_offload_before_or_after(
    sd1: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor], kind: str, first: str
) -> None:
    base = predict(sd1)
    mu.attach(sd1, masker)
    masked = predict(sd1)
    mu.detach(sd1)

    def offload() -> None:
        if kind == "layers":
            accelerate.cpu_offload(sd1, execution_device=torch.device("cpu"))
        else:
            accelerate.cpu_offload_with_hook(sd1, execution_device=torch.device("cpu"))

    if first == "offload":
        offload()
    mu.attach(sd1, masker)
    if first == "attach":
        offload()
    layer = sd1.up_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    for _ in range(2):
        assert torch.equal(predict(sd1), masked)
    assert layer.weight.device.type == ("meta" if kind == "layers" else "cpu")
    mu.detach(sd1)
    assert torch.equal(predict(sd1), base)
    assert layer.weight.device.type == ("meta" if kind == "layers" else "cpu")
    assert not any(hasattr(module, "_diffusers_hook") for module in sd1.modules())
    mu.attach(sd1, masker)
    remove_hook_from_module(sd1, recurse=True)
    assert torch.equal(predict(sd1), masked)
    mu.detach(sd1)
    assert torch.equal(predict(sd1), base)


def test_layerwise_casting_before_or_after(
    make_unet: Callable[[str], Unet], masker: mu.MaskGenerator, predict: Callable[..., Tensor]
) -> None:
    """Weights stored in half precision and cast up for each layer's computation."""
    before, after = make_unet("sd1"), make_unet("sd1")
    types = {"storage_dtype": torch.bfloat16, "compute_dtype": torch.float32}
    mu.attach(after, masker)
    after.enable_layerwise_casting(**types)
    masked = predict(after)
    before.enable_layerwise_casting(**types)
    base = predict(before)
    mu.attach(before, masker)
    torch.testing.assert_close(predict(before), masked, atol=1e-5, rtol=1e-5)
    for unet in (before, after):
        mu.detach(unet)
        assert torch.equal(predict(unet), base)


def test_a_pipeline_offloads_with_masks(pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor]) -> None:
    mu.attach(pipe, spread_generator(pipe.unet))
    masked = draw_latents(pipe, ["ab"], [0])
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert torch.equal(draw_latents(pipe, ["ab"], [0]), masked)
