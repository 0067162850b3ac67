"""Attaching to pipelines and U-Nets: what is masked, how masks are drawn, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

import maskunet as mu
from maskunet import relaxation
from maskunet.errors import TargetError
from maskunet.maskers import MaskTable, RandomMasks

Unet = UNet2DConditionModel


def spread_table(unet: Unet, samples: int | None = None) -> MaskTable:
    """Build a table whose weights are kept with all sorts of probability."""
    table = MaskTable.for_unet(unet, samples=samples)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for logits in table.logits.values():
            logits.copy_(torch.randn(logits.shape, generator=generator))
    return table


def spread_generator(unet: Unet) -> mu.MaskGenerator:
    masker = mu.MaskGenerator.for_unet(unet, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return masker


def test_masked_layers_compute_with_masked_weights(any_unet: Unet, predict: Callable[..., Tensor]) -> None:
    masker = RandomMasks.for_unet(any_unet, density=0.6, every_step=False)
    mu.attach(any_unet, masker)
    with mu.record(any_unet) as trace:
        masked = predict(any_unet)
    mu.detach(any_unet)
    with torch.no_grad():
        for name, mask in trace.masks.items():
            any_unet.get_submodule(name).weight.mul_(mask[0])
    torch.testing.assert_close(predict(any_unet), masked, atol=1e-6, rtol=1e-5)


def test_positional_and_keyword_calls_agree(
    sd1: Unet, inputs: Callable[..., dict[str, Any]], predict: Callable[..., Tensor]
) -> None:
    mu.attach(sd1, RandomMasks.for_unet(sd1, density=0.6))
    given = inputs(sd1, timestep=40)
    with torch.no_grad():
        positional = sd1(given["sample"], 40, given["encoder_hidden_states"], return_dict=False)[0]
    assert torch.equal(positional, predict(sd1, timestep=40))
    assert not torch.equal(positional, predict(sd1, timestep=41))


def test_a_pipeline_is_masked_disabled_and_detached(
    pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor]
) -> None:
    prompts, seeds = ["ab", "c"], [0, 1]
    base = draw_latents(pipe, prompts, seeds)
    attachment = mu.attach(pipe, spread_generator(pipe.unet))
    assert attachment.unet is pipe.unet
    masked = draw_latents(pipe, prompts, seeds)
    assert (masked - base).abs().max() > 1e-3
    assert torch.equal(draw_latents(pipe, prompts, seeds), masked)
    with mu.disabled(pipe):
        assert torch.equal(draw_latents(pipe, prompts, seeds), base)
    mu.detach(pipe)
    assert torch.equal(draw_latents(pipe, prompts, seeds), base)


def test_guidance_masks_its_halves_separately(
    pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor]
) -> None:
    mu.attach(pipe, spread_generator(pipe.unet))
    with mu.record(pipe) as trace:
        draw_latents(pipe, ["ab"], [0])
    masks = next(iter(trace.masks.values()))
    assert masks.shape[0] == 2
    assert any(not torch.equal(m[0], m[1]) for m in trace.masks.values())


def test_sets_of_a_table_follow_their_prompt_through_guidance(
    pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor]
) -> None:
    table = spread_table(pipe.unet, samples=2)
    mu.attach(pipe, table)
    together = draw_latents(pipe, ["ab", "c"], [0, 1])
    for row, prompt in enumerate(["ab", "c"]):
        single = MaskTable.for_unet(pipe.unet)
        single.load_state_dict({key: value[row] for key, value in table.state_dict().items()})
        mu.attach(pipe, single)
        torch.testing.assert_close(draw_latents(pipe, [prompt], [row])[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["generator", "table"])
def test_gumbel_noise_at_inference_repeats_with_its_seed_in_any_batch(
    pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor], kind: str
) -> None:
    masker = spread_generator(pipe.unet) if kind == "generator" else spread_table(pipe.unet)
    mu.attach(pipe, masker, seed=5)
    both = draw_latents(pipe, ["ab", "c"], [0, 1])
    assert torch.equal(draw_latents(pipe, ["ab", "c"], [0, 1]), both)
    torch.testing.assert_close(draw_latents(pipe, ["c"], [1])[0], both[1], atol=1e-4, rtol=1e-4)
    mu.attach(pipe, masker, seed=6)
    assert (draw_latents(pipe, ["ab", "c"], [0, 1]) - both).abs().max() > 1e-3
    mu.attach(pipe, masker)
    assert (draw_latents(pipe, ["ab", "c"], [0, 1]) - both).abs().max() > 1e-3


def test_gumbel_noise_differs_by_timestep_and_layer(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    mu.attach(sd1, MaskTable.for_unet(sd1, initial_logit=0.0), seed=5)
    with mu.record(sd1) as trace:
        for timestep in (900, 10, 900):
            predict(sd1, timestep=timestep)
    first, other, again = trace.calls
    name = next(iter(first.masks))
    same_shape = [n for n, m in first.masks.items() if m.shape == first.masks[name].shape and n != name]
    assert not torch.equal(first.masks[name], other.masks[name])
    assert not torch.equal(first.masks[name], first.masks[same_shape[0]])
    assert all(torch.equal(first.masks[n], again.masks[n]) for n in first.masks)
    kept = torch.cat([mask.flatten() for mask in first.masks.values()]).double()
    assert abs(kept.mean().item() - 0.6321) < 4.5 * (0.6321 * 0.3679 / len(kept)) ** 0.5


def test_training_draws_new_noise_per_call_and_sample(
    sd1: Unet, inputs: Callable[..., dict[str, Any]], predict: Callable[..., Tensor]
) -> None:
    masker = spread_table(sd1).train()
    attachment = mu.attach(sd1, masker, seed=1)
    with mu.record(sd1) as trace:
        first, second = predict(sd1), predict(sd1)
        attachment.reseed(1)
        repeated = [predict(sd1), predict(sd1)]
        attachment.reseed(2)
        other = predict(sd1)
    assert not torch.equal(first, second)
    assert torch.equal(repeated[0], first)
    assert torch.equal(repeated[1], second)
    assert not torch.equal(other, first)
    for name, logits in masker.logits.items():
        masks = trace.masks[name.replace("__", ".")]
        assert masks.shape == (2, *logits.shape)
    assert any(not torch.equal(m[0], m[1]) for m in trace.masks.values())
    masker.eval()
    mu.attach(sd1, masker)
    assert torch.equal(predict(sd1), predict(sd1))


def test_training_a_table_of_sets_on_a_larger_batch(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    masker = spread_table(sd1, samples=2).train()
    mu.attach(sd1, masker, seed=1)
    with mu.record(sd1) as trace:
        predict(sd1, batch=4)
    with torch.no_grad():
        for logits in masker.logits.values():
            logits[0], logits[1] = 20.0, -20.0
    with mu.record(sd1) as trace:
        predict(sd1, batch=4)
    for masks in trace.masks.values():
        assert masks.float().flatten(1).mean(1).tolist() == [1, 0, 1, 0]


def test_noise_by_layer_replaces_drawn_noise(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    table = spread_table(sd1)
    names = [layer.name for layer in table.network.layers]
    noise = {n: relaxation.gumbel_noise((2, *sd1.get_submodule(n).weight.shape), i) for i, n in enumerate(names)}
    mu.attach(sd1, table, noise=noise)
    with mu.record(sd1) as trace:
        predict(sd1)
    for name in names:
        expected = table.logits[name.replace(".", "__")] + noise[name] > 0
        assert torch.equal(trace.masks[name], expected), name


def test_noise_by_layer_must_cover_every_layer(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    table = spread_table(sd1)
    first, *rest = table.network.layers
    mu.attach(sd1, table, noise={layer.name: torch.zeros(layer.shape) for layer in rest})
    with pytest.raises(TargetError, match=f"noise for every masked layer, {first.name} is missing"):
        predict(sd1)


def test_a_masker_of_another_network_is_refused_and_the_former_stays(
    make_unet: Callable[[str], Unet], predict: Callable[..., Tensor]
) -> None:
    unet, other = make_unet("sd1"), make_unet("sdxl")
    mu.attach(unet, spread_table(unet))
    masked = predict(unet)
    with pytest.raises(TargetError, match="made for another network") as caught:
        mu.attach(unet, mu.MaskGenerator.for_unet(other))
    message = str(caught.value)
    assert "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q is not in this U-Net" in message
    assert "(and 27 more)" in message
    assert torch.equal(predict(unet), masked)


def test_layers_of_another_width_are_named_with_both_shapes(sd1: Unet) -> None:
    wider = Unet(**{**sd1.config, "cross_attention_dim": 40})
    with pytest.raises(TargetError, match=r"attn2\.to_k expected \(32, 40\), got \(32, 24\)"):
        mu.attach(sd1, MaskTable.for_unet(wider))


def test_a_generator_for_another_skip_width_is_refused(sd1: Unet) -> None:
    other = Unet(**{**sd1.config, "block_out_channels": (16, 32, 64)})
    generator = mu.MaskGenerator.for_unet(other, mu.MaskGeneratorConfig(targets=r"up_blocks\.2\..*attn2\.to_q"))
    mu.attach(sd1, generator)
    generator = mu.MaskGenerator.for_unet(other, mu.MaskGeneratorConfig(targets=r"up_blocks\.1\..*attn2\.to_q"))
    with pytest.raises(TargetError, match=r"up_blocks\.1 expected channels \(96, 32, 64\), got \(64, 32, 64\)"):
        mu.attach(sd1, generator)


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2)])
def test_what_has_no_unet_is_refused(sd1: Unet, model: Any) -> None:
    for call in (lambda: mu.attach(model, spread_table(sd1)), lambda: mu.detach(model)):
        with pytest.raises(TargetError, match="pipeline or its U-Net"):
            call()


def test_without_a_masker_detach_and_disabled_do_nothing(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.detach(sd1)
    with mu.disabled(sd1):
        assert torch.equal(predict(sd1), base)


def test_a_forward_that_raises_midway_still_detaches(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.attach(sd1, spread_table(sd1))
    masked = predict(sd1)

    def fail(*_: object) -> None:
        raise RuntimeError("midway")

    handle = sd1.up_blocks[2].attentions[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="midway"), mu.record(sd1):
        predict(sd1)
    handle.remove()
    assert torch.equal(predict(sd1), masked)
    mu.detach(sd1)
    assert torch.equal(predict(sd1), base)
    assert not any("forward" in vars(m) or hasattr(m, "_diffusers_hook") for m in sd1.modules())


def test_the_networks_of_two_models_are_independent(
    make_unet: Callable[[str], Unet], predict: Callable[..., Tensor]
) -> None:
    masked, plain = make_unet("sd1"), make_unet("sd1")
    base = predict(plain)
    mu.attach(masked, spread_table(masked))
    assert torch.equal(predict(plain), base)
    assert not torch.equal(predict(masked), base)


def test_a_masked_unet_saves_and_casts_like_the_base(sd1: Unet, predict: Callable[..., Tensor], tmp_path: Any) -> None:
    mu.attach(sd1, spread_table(sd1))
    masked = predict(sd1)
    sd1.save_pretrained(tmp_path)
    reloaded = Unet.from_pretrained(tmp_path)
    mu.attach(reloaded, spread_table(reloaded))
    assert torch.equal(predict(reloaded), masked)
    half = sd1.to(torch.bfloat16)
    with torch.no_grad():
        out = half(torch.ones(2, 4, 8, 8).bfloat16(), 5, torch.ones(2, 5, 24).bfloat16()).sample
    assert out.dtype == torch.bfloat16
