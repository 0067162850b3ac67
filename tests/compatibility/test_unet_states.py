"""A U-Net with LoRAs, in every precision and under every offload: masks as if the weights were multiplied by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel as Unet
from peft import LoraConfig
from torch import Tensor

import maskunet as mu
from maskunet.maskers import FixedMasks
from maskunet.targets import describe

STATES = (
    "LoRA", "LoRA, kohya's file", "LoRA on convolutions", "two LoRAs, weighted", "DoRA", "bfloat16", "float16", "float64",
    "bfloat16 autocast", "layerwise casting", "offload by models", "offload by layers", "offload by groups",
)  # fmt: skip
MASKERS = ("low-rank", "fixed")
TOLERANCES = {"bfloat16": 0.02, "bfloat16 autocast": 0.02, "float16": 2e-3, "layerwise casting": 2e-3}
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, about a second adapter


def add_lora(unet: Unet, name: str = "default", seed: int = 1, **options: Any) -> None:
    modules = options.pop("modules", ["to_q", "to_k", "to_v", "to_out.0"])
    config = LoraConfig(r=4, target_modules=modules, init_lora_weights=False, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config, adapter_name=name)
    unet.requires_grad_(False).eval()


def add_kohya_file(unet: Unet) -> None:
    """As `load_lora_weights` reads it: kohya's keys, with an alpha."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Mixin

    generator, state = torch.Generator().manual_seed(1), {}
    for layer in describe(unet).layers:
        key = "lora_unet_" + layer.name.replace(".", "_")
        outputs, inputs = layer.shape
        state[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=generator)
        state[f"{key}.lora_up.weight"] = torch.randn(outputs, 4, generator=generator)
        state[f"{key}.alpha"] = torch.tensor(2.0)
    converted, alphas = Mixin.lora_state_dict(state, unet_config=unet.config)
    Mixin.load_lora_into_unet(converted, network_alphas=alphas, unet=unet)
    unet.requires_grad_(False).eval()


def add_two(unet: Unet) -> None:
    add_lora(unet, "style", 1)
    add_lora(unet, "detail", 2)
    unet.set_adapters(["style", "detail"], [0.7, 0.3])


def offload_groups(unet: Unet) -> None:
    diffusers.hooks.apply_group_offloading(unet, CPU, CPU, offload_type="leaf_level")


PREPARE: dict[str, Callable[[Unet], Any]] = {
    "LoRA": add_lora,
    "LoRA, kohya's file": add_kohya_file,
    "LoRA on convolutions": lambda unet: add_lora(unet, modules=["to_q", "conv1", "conv2"]),
    "two LoRAs, weighted": add_two,
    "DoRA": lambda unet: add_lora(unet, use_dora=True),
    "bfloat16": lambda unet: unet.to(torch.bfloat16),
    "float16": lambda unet: unet.to(torch.float16),
    "float64": lambda unet: unet.to(torch.float64),
    "bfloat16 autocast": lambda unet: None,
    "layerwise casting": lambda unet: unet.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "offload by models": lambda unet: accelerate.cpu_offload_with_hook(unet, execution_device=CPU),
    "offload by layers": lambda unet: accelerate.cpu_offload(unet, execution_device=CPU),
    "offload by groups": offload_groups,
}


def build_masker(unet: Unet, kind: str, *, keep_all: bool) -> Any:
    network, generator = describe(unet), torch.Generator().manual_seed(7)
    if kind == "fixed":
        shapes = {layer.name: layer.shape for layer in network.layers}
        return FixedMasks(
            {n: torch.ones(s) if keep_all else torch.rand(s, generator=generator) < 0.7 for n, s in shapes.items()}
        )
    masker = mu.LowRankMasker.for_unet(unet, seed=3)
    if not keep_all:
        with torch.no_grad():
            for name, p in masker.named_parameters():
                p.add_(0.6 * torch.randn(p.shape, generator=generator) - 0.5 * name.endswith(("in_bias", "out_bias")))
    return masker


@pytest.mark.parametrize("first", ["state", "attach"])
@pytest.mark.parametrize("kind", MASKERS)
@pytest.mark.parametrize("state", STATES)
def test_a_state(
    make_unet: Callable[[str], Unet], inputs: Callable[..., dict[str, Any]], state: str, kind: str, first: str
) -> None:
    dtype = getattr(torch, state) if state in ("bfloat16", "float16", "float64") else torch.float32

    @torch.no_grad()
    def predict(unet: Unet) -> Tensor:
        arguments = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(unet).items()}
        with torch.autocast("cpu", torch.bfloat16) if "autocast" in state else contextlib.nullcontext():
            return unet(**arguments).sample

    def prepared(masker: Any) -> Unet:
        unet = make_unet("sd1")
        if first == "attach":
            mu.attach(unet, masker)
        PREPARE[state](unet)
        if first == "state":
            mu.attach(unet, masker)
        return unet

    plain = make_unet("sd1")
    ones, masker = (build_masker(plain, kind, keep_all=keep_all) for keep_all in (True, False))
    PREPARE[state](plain)
    base = predict(plain)
    assert torch.equal(predict(prepared(ones)), base), "all-ones differs from the base"
    unet = prepared(masker)
    masked = predict(unet)
    assert not torch.equal(masked, base)
    if kind == "fixed" and state != "DoRA":  # DoRA's magnitudes follow the weight that is multiplied by hand
        by_hand = make_unet("sd1")
        for layer in masker.network.layers:
            by_hand.get_submodule(layer.name).weight.data.mul_(masker[layer.name])
        PREPARE[state](by_hand)
        tolerance = TOLERANCES.get(state, 1e-4)
        torch.testing.assert_close(masked, predict(by_hand), atol=tolerance, rtol=tolerance)
        assert (masked - base).abs().max() > 5 * tolerance
    with mu.disabled(unet):
        assert torch.equal(predict(unet), base), "disabled differs from the base"
    mu.detach(unet)
    assert torch.equal(predict(unet), base), "detached differs from the base"
