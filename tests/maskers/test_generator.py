"""The paper's generator against its formulas, written out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

import maskunet as mu
from maskunet.errors import SettingError
from maskunet.maskers import BlockInput
from maskunet.network import BlockSpec, LayerSpec

Unet = UNet2DConditionModel


def randomised(masker: mu.MaskGenerator, scale: float = 0.5, seed: int = 0) -> mu.MaskGenerator:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return masker


def block_input(block: BlockSpec, *, skip_channels: int, batch: int = 3, side: int = 5, seed: int = 1) -> BlockInput:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    skip = normal(skip_channels, side, side) if skip_channels else None
    return BlockInput(normal(block.in_channels - skip_channels, side, side), skip, normal(block.temb_channels))


def pooled(features: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Adaptive average pooling by its definition, (B, C, kh, kw)."""
    height, width = features.shape[2:]
    rows = []
    for i in range(kernel[0]):
        top, bottom = i * height // kernel[0], -(-(i + 1) * height // kernel[0])
        cells = []
        for j in range(kernel[1]):
            left, right = j * width // kernel[1], -(-(j + 1) * width // kernel[1])
            cells.append(features[:, :, top:bottom, left:right].mean((2, 3)))
        rows.append(torch.stack(cells, -1))
    return torch.stack(rows, -2)


def formula(masker: mu.MaskGenerator, block: BlockSpec, layer: LayerSpec, inputs: BlockInput) -> Tensor:
    """S_l of the paper, position by position."""
    state = masker.state_dict()
    prefix = f"blocks.{block.name.replace('.', '__')}."
    layer_prefix = f"{prefix}layers.{layer.name.removeprefix(block.name + '.').replace('.', '__')}."
    f = masker.config.reduction
    rows, columns = block.out_channels // f, block.in_channels // f
    features = inputs.hidden_states if inputs.skip is None else torch.cat([inputs.hidden_states, inputs.skip], 1)
    grid = pooled(features, layer.kernel)
    logits = torch.empty(len(grid), *layer.shape[:2], *layer.kernel)
    for i in range(layer.kernel[0]):
        for j in range(layer.kernel[1]):
            for b in range(len(grid)):
                z = torch.zeros(block.in_channels)
                if masker.config.use_sample:
                    z = z + grid[b, :, i, j]
                if masker.config.use_timestep:
                    z = z + state[prefix + "temb_proj.weight"] @ inputs.temb[b]
                h = F.relu(state[prefix + "hidden.weight"] @ z + state[prefix + "hidden.bias"])
                reduced = F.relu(state[prefix + "reduced.weight"] @ h + state[prefix + "reduced.bias"])
                left = (
                    state[layer_prefix + "out_weight"] @ reduced.reshape(rows, columns)
                    + state[layer_prefix + "out_bias"][:, None]
                )
                logits[b, :, :, i, j] = left @ state[layer_prefix + "in_weight"].T + state[layer_prefix + "in_bias"]
    return logits.reshape(len(grid), *layer.shape)


@pytest.mark.parametrize("ablation", [{}, {"use_timestep": False}, {"use_sample": False}])
@pytest.mark.parametrize(("name", "skip_channels"), [("up_blocks.1", 32), ("mid_block", 0)])
def test_logits_are_those_of_the_paper(sd1: Unet, name: str, skip_channels: int, ablation: dict[str, Any]) -> None:
    config = mu.MaskGeneratorConfig(targets="all", hidden=16, **ablation)
    masker = randomised(mu.MaskGenerator.for_unet(sd1, config))
    block = next(block for block in masker.network.blocks if block.name == name)
    inputs = block_input(block, skip_channels=skip_channels)
    masks = masker.block_masks(name, inputs)
    assert set(masks) == {layer.name for layer in block.layers}
    for layer in block.layers:
        logits = masks[layer.name].logits()
        assert logits is not None
        torch.testing.assert_close(logits, formula(masker, block, layer, inputs), atol=2e-3, rtol=1e-4)


def test_every_input_of_the_formula_matters(sd1: Unet) -> None:
    masker = randomised(mu.MaskGenerator.for_unet(sd1))
    block = masker.network.blocks[0]
    inputs = block_input(block, skip_channels=32)
    layer = block.layers[0].name

    def logits(changed: BlockInput) -> Tensor:
        values = masker.block_masks(block.name, changed)[layer].logits()
        assert values is not None
        return values

    assert inputs.skip is not None
    base = logits(inputs)
    for changed in (
        BlockInput(inputs.hidden_states + 1, inputs.skip, inputs.temb),
        BlockInput(inputs.hidden_states, inputs.skip + 1, inputs.temb),
        BlockInput(inputs.hidden_states, inputs.skip, inputs.temb + 1),
    ):
        assert (logits(changed) - base).abs().max() > 1e-3


@pytest.mark.parametrize("targets", ["decoder-attention", "all"])
def test_a_fresh_generator_keeps_every_weight(sd1: Unet, targets: str) -> None:
    masker = mu.MaskGenerator.for_unet(sd1, mu.MaskGeneratorConfig(targets=targets, initial_logit=4.0))
    for block in masker.network.blocks:
        inputs = block_input(block, skip_channels=16 if "up" in block.name else 0)
        for mask in masker.block_masks(block.name, inputs).values():
            logits = mask.logits()
            assert logits is not None
            assert torch.equal(logits, torch.full_like(logits, 4.0))


@pytest.mark.parametrize(
    ("ablation", "without"), [({"use_timestep": False}, "temb_proj"), ({"use_sample": False}, None), ({}, None)]
)
def test_ablations_have_no_dead_parameters(
    sd1: Unet, inputs: Callable[..., dict[str, Any]], ablation: dict[str, bool], without: str | None
) -> None:
    masker = randomised(mu.MaskGenerator.for_unet(sd1, mu.MaskGeneratorConfig(**ablation)), scale=0.3).train()
    mu.attach(sd1, masker, seed=0)
    sd1(**inputs(sd1)).sample.square().sum().backward()
    gradients = {name: p.grad for name, p in masker.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not g.abs().sum() > 0] == []
    assert any("temb_proj" in name for name in gradients) is (without is None)


def test_conditioning_on_nothing_is_refused() -> None:
    with pytest.raises(
        SettingError, match="use_timestep or use_sample to be on, both are off; use LowRankMaskerConfig"
    ):
        mu.MaskGeneratorConfig(use_timestep=False, use_sample=False)


@pytest.mark.parametrize("setting", [{"tau": 0.0}, {"tau": -1.0}, {"hidden": 0}, {"reduction": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(SettingError, match=rf"^expected {name} to be .* >=? [01].*, got {value}$"):
        mu.MaskGeneratorConfig(**setting)


def test_a_seed_repeats_the_start_and_leaves_the_global_generator(sd1: Unet) -> None:
    state = torch.get_rng_state()
    first, same, other = (mu.MaskGenerator.for_unet(sd1, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], same[key]) for key in first)
    changed = {key.rsplit(".", 2)[-2] for key in first if not torch.equal(first[key], other[key])}
    assert changed == {"temb_proj", "hidden", "reduced"}


def test_reduction_shrinks_the_core_only(sd1: Unet) -> None:
    masker = mu.MaskGenerator.for_unet(sd1, mu.MaskGeneratorConfig(reduction=2, hidden=10))
    shapes = {name: tuple(p.shape) for name, p in masker.named_parameters() if "up_blocks__2" in name}
    assert shapes["blocks.up_blocks__2.hidden.weight"] == (10, 48)
    assert shapes["blocks.up_blocks__2.reduced.weight"] == (8 * 24, 10)
    key = "blocks.up_blocks__2.layers.attentions__0__transformer_blocks__0__attn2__to_k"
    assert (shapes[key + ".out_weight"], shapes[key + ".in_weight"]) == ((16, 8), (24, 24))


def test_parameters_at_stable_diffusion_1_5_size() -> None:
    with torch.device("meta"):
        unet = Unet(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        masker = mu.MaskGenerator.for_unet(unet)
    expected = 0
    for block in masker.network.blocks:
        inputs, rows, columns = block.in_channels, block.out_channels // 4, block.in_channels // 4
        expected += inputs * block.temb_channels + 64 * (inputs + 1) + rows * columns * 65
        expected += sum(x.shape[0] * (rows + 1) + x.shape[1] * (columns + 1) for x in block.layers)
    count = sum(p.numel() for p in masker.parameters())
    assert count == expected
    assert count / 1e6 == pytest.approx(67.80, abs=0.01)
