"""SynGen: it lowers the loss, repeats in any batch, and restores the pipeline."""

from __future__ import annotations

import copy
import itertools
import sys
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import DataError, SettingError
from maskunet.maskers import MaskSchedule, RandomMasks
from maskunet.sampling import StepwiseSampler
from maskunet.sampling.freezing import frozen
from maskunet.syngen import Phrase, shapes_phrases, syngen, syngen_side
from maskunet.syngen.guide import Guide
from maskunet.syngen.tokens import locate_tokens
from maskunet.targets import describe

PROMPTS, SEEDS = ["a b c d", "e f"], [4, 7]
OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0}
SHAPES = ["a red circle and a blue star", "a green heart above a pink ring"]


def bind(prompt: str) -> list[Phrase]:
    """The first word modifies the second; "e f" has no modifiers."""
    return [] if prompt == "e f" else [(1, [0])]


def unguided(pipe: Any, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS) -> Tensor:
    return StepwiseSampler(pipe, prompts, seeds=seeds, **OPTIONS).finish()


def generate(pipe: Any, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS, **changes: Any) -> Tensor:
    return syngen(pipe, prompts, seeds, **({"phrases": bind, "scale": 200.0} | OPTIONS | changes)).tensor


def are_close(a: Tensor, b: Tensor) -> bool:
    """Whether images are the same but for the last bits, which differ once in dozens of runs."""
    return torch.allclose(a, b, atol=1e-4)


def random_generator(pipe: Any) -> mu.MaskGenerator:
    """A mask generator with random weights, whose masks depend on its inputs."""
    masker = mu.MaskGenerator.for_unet(pipe.unet)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in masker.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return masker


def test_the_gradient_step_lowers_the_loss(shapes_pipe: Any) -> None:
    for resolution in (None, 4):
        sampler = StepwiseSampler(shapes_pipe, SHAPES, seeds=[0, 1], num_inference_steps=5, guidance_scale=4.0)
        tokens = [locate_tokens(shapes_pipe.tokenizer, p, shapes_phrases(p)) for p in SHAPES]
        guide = Guide(sampler, tokens, resolution)
        assert guide.positions == (64 if resolution is None else 16)
        with frozen(shapes_pipe):
            losses = []
            for _ in range(4):
                losses.append(guide.gradient()[0])
                guide.take_step(20.0)
        assert all(bool((after < before).all()) for before, after in itertools.pairwise(losses))


def test_without_scale_or_steps_it_is_plain_sampling(pipe: Any) -> None:
    expected = unguided(pipe)
    assert are_close(generate(pipe, scale=0.0), expected)
    assert are_close(generate(pipe, steps=0), expected)
    guided = generate(pipe)
    assert not are_close(guided[0], expected[0])
    assert are_close(guided[1], expected[1])  # it has no modifiers
    assert are_close(generate(pipe), guided)
    assert not are_close(generate(pipe, steps=1), guided)


def test_prompts_without_phrases_take_no_gradient_step(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guide, "take_step", lambda *_: pytest.fail("a step was taken"))
    expected = unguided(pipe, ["e f"], [7])
    assert are_close(generate(pipe, ["e f"], [7]), expected)


def test_a_noun_alone_has_no_gradient(pipe: Any) -> None:
    expected = unguided(pipe, ["a"], [4])
    assert are_close(generate(pipe, ["a"], [4], phrases=lambda _: [(0, [])]), expected)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_an_image_does_not_depend_on_its_batch(pipe: Any, guidance: float) -> None:
    both = generate(pipe, ["a b c d", "c d a"], guidance_scale=guidance)
    for row, prompt in enumerate(["a b c d", "c d a"]):
        alone = generate(pipe, [prompt], [SEEDS[row]], guidance_scale=guidance)
        torch.testing.assert_close(both[row], alone[0], atol=1e-4, rtol=1e-4)


def test_masks_act_and_stay_attached(pipe: Any) -> None:
    expected = generate(pipe)
    masker = random_generator(pipe)
    attachment = mu.attach(pipe, masker)
    flags = [p.requires_grad for p in masker.parameters()]
    masked = generate(pipe)
    assert not are_close(masked, expected)
    assert not are_close(masked[0], unguided(pipe)[0])
    assert attachment_of(pipe) is attachment
    assert [p.requires_grad for p in masker.parameters()] == flags
    assert not attachment.is_frozen
    assert all(p.grad is None for p in [*masker.parameters(), *pipe.unet.parameters()])
    with mu.record(pipe, keep="density") as trace:
        generate(pipe)
    assert len(trace.overall_density()) == OPTIONS["num_inference_steps"]  # without the guide's calls
    assert are_close(syngen_side(pipe, masks=False, phrases=bind, scale=200.0, **OPTIONS)(PROMPTS, SEEDS), expected)
    assert are_close(syngen_side(pipe, phrases=bind, scale=200.0, **OPTIONS)(PROMPTS, SEEDS), masked)
    mu.detach(pipe)
    assert are_close(generate(pipe), expected)


def test_masks_are_constants(pipe: Any) -> None:
    """The gradient under a masker is that under its masks as constants."""
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
    guide = Guide(sampler, [locate_tokens(pipe.tokenizer, p, bind(p)) for p in PROMPTS], None)
    mu.attach(pipe, random_generator(pipe))
    with frozen(pipe):
        losses, gradient = guide.gradient()
        with mu.record(pipe) as trace, torch.no_grad():
            sampler.predict_half(conditional=True)
        attachment = attachment_of(pipe)
        assert attachment is not None
        schedule = MaskSchedule(attachment.masker.network, [float(sampler.timestep)], samples=2)
        schedule.set(0, trace.masks)
        assert 0.1 < float(schedule.density().min()) < 0.9
        mu.attach(pipe, schedule)
        constant_losses, constant_gradient = guide.gradient()
    torch.testing.assert_close(constant_losses, losses)
    torch.testing.assert_close(constant_gradient, gradient)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
def test_masks_of_a_search(pipe: Any, scheduler: str) -> None:
    """Masks of the conditional half act like those of guided batches, and stay in step with the calls."""
    pipe.scheduler = getattr(diffusers, scheduler)(**({"skip_prk_steps": True} if scheduler[0] == "P" else {}))
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
    guide = Guide(sampler, [locate_tokens(pipe.tokenizer, p, bind(p)) for p in PROMPTS], None)
    network, times = describe(pipe.unet, "decoder-attention"), [float(t) for t in sampler.timesteps]
    shapes = {layer.name: (2, *layer.shape) for layer in network.layers}
    gradients = []
    for half in ("conditional", None):
        generator = torch.Generator().manual_seed(0)
        schedule = MaskSchedule(network, times, samples=2, guided_half=half)
        for i in range(len(times)):
            schedule.set(i, {name: torch.rand(shape, generator=generator) > 0.3 for name, shape in shapes.items()})
        mu.attach(pipe, schedule)
        gradients.append(guide.gradient())
        expected = unguided(pipe)
        assert are_close(generate(pipe, scale=0.0), expected)
        assert not are_close(generate(pipe)[0], expected[0])
        mu.attach(pipe, {"masks": schedule})
        gradients.append(guide.gradient())
        assert are_close(generate(pipe, scale=0.0), expected)
    for one, *others in zip(*gradients, strict=True):
        for other in others:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_other_schedulers(pipe: Any, name: str) -> None:
    pipe.scheduler = getattr(diffusers, name)()
    assert are_close(generate(pipe, scale=0.0), unguided(pipe))
    assert not are_close(generate(pipe)[0], generate(pipe, scale=0.0)[0])


def test_the_step_is_one_of_the_scaled_latents(pipe: Any) -> None:
    moves = []
    for scheduler in (diffusers.DDIMScheduler(timestep_spacing="linspace"), diffusers.EulerDiscreteScheduler()):
        pipe.scheduler = scheduler
        sampler = StepwiseSampler(pipe, ["a b c"], seeds=[0], num_inference_steps=4, guidance_scale=1.0)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        sampler.latents = noise * (sampler.latents.std() / sampler.scaled_latents().std())
        scaled = sampler.scaled_latents()
        Guide(sampler, [locate_tokens(pipe.tokenizer, "a b c", [(1, [0])])], None).take_step(100.0)
        moves.append(sampler.scaled_latents() - scaled)
    # Both start from the last timestep with scaled latents of the same noise.
    torch.testing.assert_close(moves[0], moves[1], atol=2e-3 * float(moves[0].abs().max()), rtol=2e-2)


def test_xl_and_velocity(sdxl_pipe: Any, pipe: Any, sd2_pipe: Any) -> None:
    for one, resolution in ((sdxl_pipe, 4), (sd2_pipe, None)):
        guided = generate(one, resolution=resolution, scale=2e4)
        assert not are_close(guided[0], generate(one, resolution=resolution, scale=0.0)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipe: Any, dtype: torch.dtype) -> None:
    """The gradient is about that of single precision, although it is small."""
    pipe, gradients = copy.deepcopy(pipe), []
    for precision in (torch.float32, dtype):
        pipe.to(precision)
        sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
        sampler.latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(precision)
        with frozen(pipe):
            guide = Guide(sampler, [locate_tokens(pipe.tokenizer, p, bind(p)) for p in PROMPTS], None)
            gradients.append(guide.gradient()[1][0])
    one, other = gradients
    assert float((one - other).norm() / one.norm()) < 0.1
    assert generate(pipe).dtype == torch.float32


def test_gradient_checkpointing_gives_the_same(pipe: Any) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.8))
    expected = generate(pipe)
    pipe.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(generate(pipe), expected, atol=1e-5, rtol=1e-5)


def test_offload_by_layer_gives_the_same(pipe: Any) -> None:
    expected = generate(pipe)
    pipe = copy.deepcopy(pipe)  # its parts are shared among tests
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    torch.testing.assert_close(generate(pipe), expected, atol=1e-5, rtol=1e-5)
    assert next(pipe.unet.parameters()).device.type == "meta"


def test_group_offload_is_refused(pipe: Any) -> None:
    apply_group_offloading(pipe.unet, onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(DataError, match="without diffusers' group offload"):
        generate(pipe)


def test_images_of_other_shapes_are_guided(pipe: Any) -> None:
    wide = {"height": 16, "width": 32}
    guided = generate(pipe, **wide)
    assert guided.shape == (2, 3, 16, 32)
    assert not are_close(guided[0], generate(pipe, scale=0.0, **wide)[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_pipeline_is_restored_after_a_failure(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    pipe.unet.train()
    weight = next(pipe.unet.parameters()).requires_grad_(True)
    attachment = mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.9))
    processors, scheduler = dict(pipe.unet.attn_processors), dict(vars(pipe.scheduler))

    def fail(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr("maskunet.syngen.guide.binding_loss", fail)
    with pytest.raises(error):
        generate(pipe)
    assert all(p is processors[name] for name, p in pipe.unet.attn_processors.items())
    assert vars(pipe.scheduler) == scheduler
    assert pipe.unet.training
    assert weight.requires_grad
    assert weight.grad is None
    assert attachment_of(pipe) is attachment
    assert attachment.enabled
    assert not attachment.is_frozen


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale", -1.0),
        ("scale", float("nan")),
        ("scale", float("inf")),
        ("scale", "20"),
        ("steps", -1),
        ("steps", 2.5),
        ("resolution", 0),
        ("resolution", float("nan")),
        ("num_inference_steps", 0),
        ("num_inference_steps", float("nan")),
        ("guidance_scale", float("nan")),
        ("eta", 2.0),
    ],
)
def test_bad_options_are_refused_in_one_line(pipe: Any, option: str, value: object) -> None:
    for call in (
        lambda: generate(pipe, **{option: value}),
        lambda: syngen_side(pipe, phrases=bind, **{option: value}),
    ):
        with pytest.raises(SettingError, match=f"expected {option} to be .*, got") as error:
            call()
        assert "\n" not in str(error.value)


def test_unsuitable_prompts_and_networks_are_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="at 49 positions"):
        generate(pipe, resolution=7)
    with pytest.raises(SettingError, match="one seed for each of 2 prompts"):
        generate(pipe, seeds=[1])
    with pytest.raises(DataError, match="put it into a list"):
        syngen(pipe, "a b", [1], phrases=bind)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match=r"maskunet\[syngen\]"):
        syngen(pipe, PROMPTS, SEEDS)
    with pytest.raises(DataError, match=r"maskunet\[syngen\]"):
        syngen_side(pipe)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(DataError, match="attention processor"):
        generate(pipe)


def test_the_result_holds_the_settings(pipe: Any) -> None:
    result = syngen(pipe, PROMPTS, SEEDS, phrases=bind, scale=3.0, **OPTIONS)
    assert (result.prompts, result.seeds) == (PROMPTS, SEEDS)
    assert result.settings == OPTIONS | {"syngen_scale": 3.0, "scheduler": type(pipe.scheduler).__name__}
