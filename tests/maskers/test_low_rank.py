"""The low-rank masker against its formula, written out sample by sample."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel as Unet
from torch import Tensor

import maskunet as mu
from maskunet.errors import SettingError
from maskunet.maskers import BlockInput, build_masker, low_rank
from maskunet.maskers.conditional import layer_key
from maskunet.network import BlockSpec, LayerSpec
from maskunet.relaxation import threshold


def randomised(masker: mu.LowRankMasker, scale: float = 0.5) -> mu.LowRankMasker:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return masker


def block_input(block: BlockSpec, skip_channels: int) -> BlockInput:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, block.in_channels - skip_channels, 6, 6, generator=generator)
    skip = torch.randn(2, skip_channels, 6, 6, generator=generator) if skip_channels else None
    return BlockInput(hidden, skip, torch.randn(2, block.temb_channels, generator=generator))


def formula(masker: mu.LowRankMasker, block: BlockSpec, layer: LayerSpec, inputs: BlockInput) -> Tensor:
    """S_l of the module's docstring, entry by entry of the equation."""
    state = masker.state_dict()
    prefix = f"blocks.{block.name.replace('.', '__')}."
    layer_prefix = f"{prefix}layers.{layer_key(layer.name, block.name)}."
    u, v, a, b = (state[layer_prefix + name] for name in ("out_weight", "in_weight", "out_bias", "in_bias"))
    width, index = masker.config.rank - 1, [x.name for x in block.layers].index(layer.name)
    d = state[prefix + "modulation.weight"].reshape(len(block.layers), 3, width, -1)[index]
    parts = [inputs.hidden_states] if inputs.skip is None else [inputs.hidden_states, inputs.skip]
    logits = []
    for row in range(len(inputs.hidden_states)):
        z: Tensor | float = 0.0
        if masker.config.use_sample:
            pooled = torch.cat([part[row].mean((1, 2)) for part in parts])
            z = state[prefix + "sample_proj.weight"] @ pooled + state[prefix + "sample_proj.bias"]
        if masker.config.use_timestep:
            z = z + state[prefix + "temb_proj.weight"] @ inputs.temb[row]
            if not masker.config.use_sample:
                z = z + state[prefix + "temb_proj.bias"]
        assert isinstance(z, Tensor)
        c, alpha, beta = (d[k] @ F.relu(z) for k in range(3))
        product = (u @ torch.diag(c + 1) + beta) @ v.T
        logits.append(product + (a + u @ alpha)[:, None] + b)
    return torch.stack(logits).reshape(-1, *layer.shape)


@pytest.mark.parametrize("ablation", [{}, {"use_timestep": False}, {"use_sample": False}])
@pytest.mark.parametrize(("name", "skip_channels"), [("up_blocks.1", 32), ("mid_block", 0)])
def test_logits_are_those_of_the_formula(sd1: Unet, name: str, skip_channels: int, ablation: dict[str, Any]) -> None:
    masker = randomised(
        mu.LowRankMasker.for_unet(sd1, mu.LowRankMaskerConfig(targets="all", rank=4, hidden=16, **ablation))
    )
    block = next(block for block in masker.network.blocks if block.name == name)
    inputs = block_input(block, skip_channels)
    masks = masker.block_masks(name, inputs)
    assert set(masks) == {layer.name for layer in block.layers}
    for layer in block.layers:
        logits = masks[layer.name].logits()
        assert logits is not None
        torch.testing.assert_close(logits, formula(masker, block, layer, inputs), atol=1e-4, rtol=1e-4)


def test_a_fresh_masker_has_its_initial_logit_everywhere_and_a_gradient(sd1: Unet) -> None:
    masker = mu.LowRankMasker.for_unet(sd1, mu.LowRankMaskerConfig(targets="all", initial_logit=1.5, rank=3), seed=0)
    for block in masker.network.blocks:
        masks = masker.block_masks(block.name, block_input(block, 16 if "up" in block.name else 0))
        for layer in block.layers:
            logits = masks[layer.name].logits()
            assert logits is not None
            assert torch.equal(logits, torch.full_like(logits, 1.5))
            (logits * torch.randn(logits.shape)).sum().backward(retain_graph=True)
    for name, parameter in masker.named_parameters():
        # What multiplies U waits for its first step.
        waits = name.endswith("in_weight") or "_proj" in name
        assert parameter.grad is not None
        assert waits or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("ablation", "without"), [({"use_timestep": False}, "temb"), ({"use_sample": False}, "sample")]
)
def test_ablations_have_no_dead_parameters(
    sd1: Unet, inputs: Callable[..., dict[str, Any]], ablation: dict[str, bool], without: str
) -> None:
    masker = randomised(mu.LowRankMasker.for_unet(sd1, mu.LowRankMaskerConfig(**ablation)), scale=0.3).train()
    mu.attach(sd1, masker, seed=0)
    sd1(**inputs(sd1)).sample.square().sum().backward()
    gradients = {name: p.grad for name, p in masker.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not g.abs().sum() > 0] == []
    assert not any(f"{without}_proj" in name for name in gradients)


@pytest.mark.parametrize("setting", [{"tau": 0.0}, {"hidden": 0}, {"rank": 1}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(SettingError, match=rf"^expected {name} to be .* >=? [012]( and <= 65536)?, got {value}$"):
        mu.LowRankMaskerConfig(**setting)


def unconditional(unet: Unet) -> mu.LowRankMasker:
    config = mu.LowRankMaskerConfig(targets="all", rank=4, use_timestep=False, use_sample=False)
    return randomised(mu.LowRankMasker.for_unet(unet, config))


def test_logits_without_a_condition_are_those_of_the_formula(sd1: Unet) -> None:
    masker = unconditional(sd1)
    assert masker.conditions == ()
    state = masker.state_dict()
    for block in masker.network.blocks:
        masks = masker.block_masks(block.name, block_input(block, 0))
        for layer in block.layers:
            prefix = f"blocks.{block.name.replace('.', '__')}.layers.{layer_key(layer.name, block.name)}."
            u, v, a, b = (state[prefix + name] for name in ("out_weight", "in_weight", "out_bias", "in_bias"))
            logits = masks[layer.name].logits()
            assert logits is not None
            expected = (u @ v.T + a[:, None] + b).reshape(1, *layer.shape)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_masks_without_a_condition_are_computed_once(
    sd1: Unet, predict: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    masker = unconditional(sd1)
    mu.attach(sd1, masker)
    first = predict(sd1)
    computed: list[Any] = []
    monkeypatch.setattr(low_rank, "threshold", lambda logits: computed.append(1) or threshold(logits))
    assert torch.equal(predict(sd1), first)
    assert computed == []
    # A write that leaves versions and addresses as they are, such as that of an EMA.
    parameter = next(masker.parameters())
    before = parameter.detach().clone()
    parameter.data.copy_(-parameter.data)
    changed = predict(sd1)
    assert len(computed) == len(masker.network.blocks[0].layers)
    parameter.data.copy_(before)
    again = predict(sd1)
    assert torch.equal(again, first)
    assert not torch.equal(changed, first)


def test_cached_masks_are_those_that_training_sees(
    sd1: Unet, inputs: Callable[..., dict[str, Any]], predict: Callable[..., Tensor]
) -> None:
    masker = unconditional(sd1)
    mu.attach(sd1, masker)
    cached = predict(sd1)
    trained = sd1(**inputs(sd1)).sample  # with gradients, from the logits
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), cached, atol=1e-6, rtol=0)


def test_cached_masks_follow_dtype_and_copies(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    masker = unconditional(sd1)
    mu.attach(sd1, masker)
    first = predict(sd1)
    masker.double()
    torch.testing.assert_close(predict(sd1), first, atol=1e-6, rtol=0)
    masker.float()
    other = copy.deepcopy(masker)
    with torch.no_grad():
        next(other.parameters()).neg_()
    assert torch.equal(predict(sd1), first)
    mu.attach(sd1, other)
    assert not torch.equal(predict(sd1), first)


def test_parameters_at_stable_diffusion_1_5_size() -> None:
    with torch.device("meta"):
        unet = Unet(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        masker = mu.LowRankMasker.for_unet(unet)
    assert masker.network.weights == 49_029_120
    assert sum(p.numel() for p in masker.parameters()) < 5_000_000


def test_the_class_of_the_config_chooses_the_masker(sd1: Unet) -> None:
    for settings, kind in (
        (mu.LowRankMaskerConfig(rank=4), mu.LowRankMasker),
        (mu.MaskGeneratorConfig(), mu.MaskGenerator),
    ):
        assert type(build_masker(sd1, settings, seed=0)) is kind
    with pytest.raises(SettingError, match=r"^expected a LowRankMaskerConfig or a MaskGeneratorConfig, got dict$"):
        build_masker(sd1, {"rank": 4})  # type: ignore[arg-type]
    for config in (mu.MaskGeneratorConfig(), {"rank": 4}, 3):
        with pytest.raises(SettingError, match=r"^expected a LowRankMaskerConfig for a LowRankMasker, got "):
            mu.LowRankMasker.for_unet(sd1, config)


@pytest.mark.parametrize("option", [{"hidden": 2**40}, {"rank": 2**40}])
def test_sizes_that_fit_no_memory_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"expected (hidden|rank) to be an integer >= . and <= 65536, got"):
        mu.LowRankMaskerConfig(**option)
