"""Which layers targets choose in the real architectures, and what is said when they choose badly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from maskunet.errors import CheckpointError, TargetError
from maskunet.network import BlockSpec, LayerSpec, Network
from maskunet.targets import block_of, describe, resolve, unet_of

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
Unet = UNet2DConditionModel


def attention_layers(unet: Unet, within: str) -> list[str]:
    found = [n for n, m in unet.named_modules() if n.startswith(within) and type(m) is nn.Linear]
    return [n for n in found if n.endswith(PROJECTIONS)]


def convolutions(unet: Unet, within: str) -> list[str]:
    found = [n for n, m in unet.named_modules() if n.startswith(within) and isinstance(m, nn.Conv2d)]
    return [n for n in found if not n.endswith(("proj_in", "proj_out"))]


@pytest.mark.parametrize(("style", "count", "blocks"), [("sd1", 32, (1, 2)), ("sd2", 32, (1, 2)), ("sdxl", 32, (0,))])
def test_decoder_attention_is_every_projection_of_the_decoder(
    make_unet: Callable[[str], Unet], style: str, count: int, blocks: tuple[int, ...]
) -> None:
    unet = make_unet(style)
    network = describe(unet)
    assert [layer.name for layer in network.layers] == attention_layers(unet, "up_blocks")
    assert len(network.layers) == count
    assert [block.name for block in network.blocks] == [f"up_blocks.{i}" for i in blocks]
    assert network.weights == sum(unet.get_submodule(x.name).weight.numel() for x in network.layers)


def test_decoder_attention_conv_adds_the_decoder_convolutions(any_unet: Unet) -> None:
    chosen = resolve(any_unet, "decoder-attention-conv")
    expected = attention_layers(any_unet, "up_blocks") + convolutions(any_unet, "up_blocks")
    assert sorted(chosen) == sorted(expected)
    names = [name for name, _ in any_unet.named_modules()]
    assert chosen == sorted(chosen, key=names.index)
    assert any(name.endswith("conv_shortcut") for name in chosen)
    assert any(".upsamplers.0.conv" in name for name in chosen)


def test_all_is_every_block(any_unet: Unet) -> None:
    expected = [
        name
        for block in ("down_blocks", "mid_block", "up_blocks")
        for name in attention_layers(any_unet, block) + convolutions(any_unet, block)
    ]
    assert sorted(resolve(any_unet, "all")) == sorted(expected)
    assert {block_of(name).split(".")[0] for name in expected} == {"down_blocks", "mid_block", "up_blocks"}


def test_blocks_are_described_by_their_first_resnet(sd1: Unet) -> None:
    blocks = {block.name: block for block in describe(sd1, "all").blocks}
    sizes = {name: (b.in_channels, b.out_channels, b.temb_channels) for name, b in blocks.items()}
    assert sizes["up_blocks.1"] == (64, 32, 64)
    assert sizes["up_blocks.2"] == (32 + 16, 16, 64)
    assert sizes["mid_block"] == (32, 32, 64)
    assert sizes["down_blocks.1"] == (16, 32, 64)


def test_layer_shapes_and_kernels(sd1: Unet) -> None:
    layers = {layer.name: layer for layer in describe(sd1, "decoder-attention-conv").layers}
    linear = layers["up_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert (linear.shape, linear.kernel, linear.weights) == ((16, 24), (1, 1), 384)
    conv = layers["up_blocks.2.resnets.0.conv1"]
    assert (conv.shape, conv.kernel, conv.weights) == ((16, 48, 3, 3), (3, 3), 6912)
    assert layers["up_blocks.2.resnets.0.conv_shortcut"].kernel == (1, 1)


@pytest.mark.parametrize("suffixes", [["to_q"], ("attn2.to_k", "to_out.0"), ["up_blocks.1.resnets.0.conv1"]])
def test_a_list_holds_suffixes_of_whole_words(sd1: Unet, suffixes: list[str]) -> None:
    expected = [n for n, _ in sd1.named_modules() if any(n == s or n.endswith("." + s) for s in suffixes)]
    assert resolve(sd1, suffixes) == expected
    assert expected


def test_a_regular_expression_matches_whole_names(sd1: Unet) -> None:
    chosen = resolve(sd1, r"up_blocks\.1\.attentions\.[01]\..*attn1\.to_(q|v)")
    assert len(chosen) == 4
    assert all(name.endswith(("attn1.to_q", "attn1.to_v")) for name in chosen)
    with pytest.raises(TargetError, match="match no layer"):
        resolve(sd1, "to_q")


@pytest.mark.parametrize(
    ("targets", "wanted", "near"),
    [
        ("decoder-atention", "'decoder-atention' match no layer", "decoder-attention"),
        (["to_q", "to_kk"], "'to_kk' match no layer", "to_k"),
        (r"up_blocks\.9\..*", "match no layer", "Presets: decoder-attention, decoder-attention-conv, all"),
        (["o_q"], "'o_q' match no layer", "to_q"),
    ],
)
def test_no_match_lists_near_misses(sd1: Unet, targets: Any, wanted: str, near: str) -> None:
    with pytest.raises(TargetError) as caught:
        resolve(sd1, targets)
    assert wanted in str(caught.value)
    assert near in str(caught.value).split("Near misses:")[1]
    assert "\n" not in str(caught.value)


def test_targets_that_are_empty_or_no_regular_expression(sd1: Unet) -> None:
    with pytest.raises(TargetError, match="at least one suffix as targets, got an empty list"):
        resolve(sd1, [])
    with pytest.raises(TargetError, match=r"got 'up\(', which is not a regular expression"):
        resolve(sd1, "up(")


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (r"up_blocks\.1\..*norm1", "GroupNorm"),
        (["norm2"], "LayerNorm"),
        (["attn1"], "Attention"),
        (r"up_blocks\.1", "CrossAttnUpBlock2D"),
        (["conv_in"], "conv_in (Conv2d)"),
        (r"time_embedding\.linear_1", "time_embedding.linear_1 (Linear)"),
        (["to_q", "conv_out"], "conv_out (Conv2d)"),
    ],
)
def test_a_match_that_cannot_be_masked_is_named(sd1: Unet, targets: Any, named: str) -> None:
    with pytest.raises(TargetError, match="cannot be masked") as caught:
        resolve(sd1, targets)
    assert named in str(caught.value)
    assert "Only Linear and Conv2d layers inside down_blocks, mid_block and up_blocks can" in str(caught.value)


def test_a_subclass_of_linear_is_not_masked(sd1: Unet) -> None:
    class Quantised(nn.Linear):
        pass

    attention = sd1.up_blocks[1].attentions[0].transformer_blocks[0].attn1
    attention.to_q = Quantised(32, 32, bias=False)
    with pytest.raises(TargetError, match=r"attn1\.to_q has weights of test_targets\.Quantised, which masks"):
        describe(sd1)


def test_names_are_the_same_with_a_lora(sd1: Unet) -> None:
    before = describe(sd1, "all")
    sd1.add_adapter(LoraConfig(target_modules=["to_q", "to_out.0", "conv1", "time_emb_proj"]))
    assert describe(sd1, "all") == before


@pytest.mark.parametrize("targets", ["decoder-attention", "all"])
def test_json_round_trip(any_unet: Unet, targets: str) -> None:
    network = describe(any_unet, targets)
    assert Network.from_json(json.loads(json.dumps(network.to_json()))) == network


@pytest.mark.parametrize("blocks", [5, ["block"], [{"name": "up_blocks.0"}], [{"name": "x", "in_channels": "wide"}]])
def test_json_that_describes_no_network(blocks: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a list of blocks with their layers"):
        Network.from_json(blocks)


def test_networks_are_compared_by_value() -> None:
    layers = (LayerSpec("up_blocks.0.a", (2, 3)), LayerSpec("up_blocks.0.b", (2, 3, 3, 3)))
    network = Network((BlockSpec("up_blocks.0", 4, 2, 8, layers),))
    assert network.weights == 6 + 54
    assert network.layers == layers
    assert hash(network) == hash(Network.from_json(network.to_json()))


def test_the_unet_of_a_pipeline(pipe: StableDiffusionPipeline) -> None:
    assert unet_of(pipe) is pipe.unet
    assert unet_of(pipe.unet) is pipe.unet
    assert unet_of(torch.compile(pipe.unet, backend="eager")) is pipe.unet
    assert describe(pipe) == describe(pipe.unet)


@pytest.mark.parametrize("model", [None, nn.Linear(2, 2), "runwayml/sd", object()])
def test_what_has_no_unet_is_refused(model: Any) -> None:
    with pytest.raises(TargetError, match=f"pipeline or its U-Net.*got {type(model).__name__}"):
        unet_of(model)


@pytest.mark.parametrize("name", ["conv_in", "up_blocks", "up_blocks.1", "mid_blocks.0.conv", "x.up_blocks.0.conv"])
def test_a_layer_outside_the_blocks_has_none(name: str) -> None:
    with pytest.raises(TargetError, match="expected a layer inside down_blocks, mid_block or up_blocks"):
        block_of(name)


def test_stable_diffusion_1_5_has_the_layers_and_weights_of_the_paper() -> None:
    with torch.device("meta"):
        unet = Unet(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    network = describe(unet)
    assert len(network.layers) == 72
    assert round(network.weights / 1e6, 2) == 49.03
    assert [block.name for block in network.blocks] == ["up_blocks.1", "up_blocks.2", "up_blocks.3"]
