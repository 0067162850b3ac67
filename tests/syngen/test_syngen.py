"""SynGen: what it lowers, what it repeats, what it leaves alone."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from benchmarks.studies import rivals
from diffusers.hooks import apply_group_offloading
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import DataError
from maskunet.maskers import MaskSchedule, RandomMasks
from maskunet.sampling import StepwiseSampler
from maskunet.sampling.freezing import frozen
from maskunet.syngen import Phrase, shapes_phrases, syngen, syngen_side
from maskunet.syngen import guide as engine
from maskunet.syngen.guide import Guide
from maskunet.syngen.tokens import locate_tokens
from maskunet.targets import describe

PROMPTS, SEEDS = ["a b c d", "e f"], [4, 7]
OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0}
SHAPES = ["a red circle and a blue star", "a green heart above a pink ring"]


def bind(prompt: str) -> list[Phrase]:
    """The first word modifies the second; "e f" has no modifiers."""
    return [] if prompt == "e f" else [(1, [0])]


def made(pipe: Any, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS, **changes: Any) -> Tensor:
    return syngen(pipe, prompts, seeds, **({"phrases": bind, "scale": 200.0} | OPTIONS | changes)).tensor


def close(a: Tensor, b: Tensor) -> bool:
    """The same but for the last bits, which differ once in dozens of runs."""
    return torch.allclose(a, b, atol=1e-4)


def drawn_generator(pipe: Any) -> mu.MaskGenerator:
    """A mask generator with random weights, whose masks depend on what comes in."""
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


def test_no_scale_is_plain_sampling_and_scale_is_not(pipe: Any) -> None:
    plain = rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS)
    assert close(made(pipe, scale=0.0), plain)
    assert close(made(pipe, steps=0), plain)
    guided = made(pipe)
    assert not close(guided[0], plain[0])
    assert close(guided[1], plain[1])  # it has no modifiers
    assert close(made(pipe), guided)
    assert not close(made(pipe, steps=1), guided)


def test_prompts_without_phrases_never_call_for_a_gradient(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guide, "take_step", lambda *_: pytest.fail("pushed"))
    plain = rivals.plain(pipe, ["e f"], [7], **OPTIONS)
    assert close(made(pipe, ["e f"], [7]), plain)


def test_a_noun_alone_has_no_gradient(pipe: Any) -> None:
    plain = rivals.plain(pipe, ["a"], [4], **OPTIONS)
    assert close(made(pipe, ["a"], [4], phrases=lambda _: [(0, [])]), plain)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_a_picture_does_not_depend_on_its_neighbours(pipe: Any, guidance: float) -> None:
    both = made(pipe, ["a b c d", "c d a"], guidance_scale=guidance)
    for row, prompt in enumerate(["a b c d", "c d a"]):
        alone = made(pipe, [prompt], [SEEDS[row]], guidance_scale=guidance)
        torch.testing.assert_close(both[row], alone[0], atol=1e-4, rtol=1e-4)


def test_masks_count_and_stay(pipe: Any) -> None:
    plain = made(pipe)
    masker = drawn_generator(pipe)
    attachment = mu.attach(pipe, masker)
    flags = [p.requires_grad for p in masker.parameters()]
    masked = made(pipe)
    assert not close(masked, plain)
    assert not close(masked[0], rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS)[0])
    assert attachment_of(pipe) is attachment
    assert [p.requires_grad for p in masker.parameters()] == flags
    assert not attachment.is_frozen
    assert all(p.grad is None for p in [*masker.parameters(), *pipe.unet.parameters()])
    with mu.record(pipe, keep="density") as trace:
        made(pipe)
    assert len(trace.overall_density()) == OPTIONS["num_inference_steps"]  # no call of the guide's
    assert close(syngen_side(pipe, masks=False, phrases=bind, scale=200.0, **OPTIONS)(PROMPTS, SEEDS), plain)
    assert close(syngen_side(pipe, phrases=bind, scale=200.0, **OPTIONS)(PROMPTS, SEEDS), masked)
    mu.detach(pipe)
    assert close(made(pipe), plain)


def test_masks_are_constants(pipe: Any) -> None:
    """The gradient under a masker is that under the very masks, given."""
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
    guide = Guide(sampler, [locate_tokens(pipe.tokenizer, p, bind(p)) for p in PROMPTS], None)
    mu.attach(pipe, drawn_generator(pipe))
    with frozen(pipe):
        losses, gradient = guide.gradient()
        with mu.record(pipe) as trace, torch.no_grad():
            sampler.predict_half(conditional=True)
        attachment = attachment_of(pipe)
        assert attachment is not None
        given = MaskSchedule(attachment.masker.network, [float(sampler.timestep)], samples=2)
        given.set(0, trace.masks)
        assert 0.1 < float(given.density().min()) < 0.9
        mu.attach(pipe, given)
        same = guide.gradient()
    torch.testing.assert_close(same[0], losses)
    torch.testing.assert_close(same[1], gradient)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
def test_masks_of_a_search(pipe: Any, scheduler: str) -> None:
    """Masks of the conditional half alone count as those of whole batches do, and stay with their calls."""
    pipe.scheduler = getattr(diffusers, scheduler)(**({"skip_prk_steps": True} if scheduler[0] == "P" else {}))
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, **OPTIONS)
    guide = Guide(sampler, [locate_tokens(pipe.tokenizer, p, bind(p)) for p in PROMPTS], None)
    network, times = describe(pipe.unet, "decoder-attention"), [float(t) for t in sampler.timesteps]
    shapes = {layer.name: (2, *layer.shape) for layer in network.layers}
    found = []
    for half in ("conditional", None):
        generator = torch.Generator().manual_seed(0)
        schedule = MaskSchedule(network, times, samples=2, guided_half=half)
        for i in range(len(times)):
            schedule.set(i, {name: torch.rand(shape, generator=generator) > 0.3 for name, shape in shapes.items()})
        mu.attach(pipe, schedule)
        found.append(guide.gradient())
        plain = rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS)
        assert close(made(pipe, scale=0.0), plain)
        assert not close(made(pipe)[0], plain[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_other_schedulers(pipe: Any, name: str) -> None:
    pipe.scheduler = getattr(diffusers, name)()
    assert close(made(pipe, scale=0.0), rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS))
    assert not close(made(pipe)[0], made(pipe, scale=0.0)[0])


def test_the_step_is_one_of_the_scaled_latents(pipe: Any) -> None:
    moves = []
    for scheduler in (diffusers.DDIMScheduler(timestep_spacing="linspace"), diffusers.EulerDiscreteScheduler()):
        pipe.scheduler = scheduler
        sampler = StepwiseSampler(pipe, ["a b c"], seeds=[0], num_inference_steps=4, guidance_scale=1.0)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        sampler.latents = noise * (sampler.latents.std() / sampler.scaled_latents().std())
        before = sampler.scaled_latents()
        Guide(sampler, [locate_tokens(pipe.tokenizer, "a b c", [(1, [0])])], None).take_step(100.0)
        moves.append(sampler.scaled_latents() - before)
    # Both start from the last timestep with scaled latents of the same noise.
    torch.testing.assert_close(moves[0], moves[1], atol=2e-3 * float(moves[0].abs().max()), rtol=2e-2)


def test_xl_and_velocity(sdxl_pipe: Any, pipe: Any, sd2_pipe: Any) -> None:
    for one, resolution in ((sdxl_pipe, 4), (sd2_pipe, None)):
        changed = made(one, resolution=resolution, scale=2e4)
        assert not close(changed[0], made(one, resolution=resolution, scale=0.0)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipe: Any, dtype: torch.dtype) -> None:
    """The gradient is about that of single precision, small as it is."""
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
    assert made(pipe).dtype == torch.float32


def test_gradient_checkpointing_gives_the_same(pipe: Any) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.8))
    plain = made(pipe)
    pipe.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(made(pipe), plain, atol=1e-5, rtol=1e-5)


def test_offload_by_layer_gives_the_same(pipe: Any) -> None:
    plain = made(pipe)
    pipe = copy.deepcopy(pipe)  # its parts are shared among tests
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    torch.testing.assert_close(made(pipe), plain, atol=1e-5, rtol=1e-5)
    assert next(pipe.unet.parameters()).device.type == "meta"


def test_group_offload_is_refused(pipe: Any) -> None:
    apply_group_offloading(pipe.unet, onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(DataError, match="without diffusers' group offload"):
        made(pipe)


def test_pictures_of_other_shapes(pipe: Any) -> None:
    assert made(pipe, height=16, width=32).shape == (2, 3, 16, 32)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_pipeline_is_left_as_it_was(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    pipe.unet.train()
    weight = next(pipe.unet.parameters()).requires_grad_(True)
    attachment = mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.9))
    processors, scheduler = dict(pipe.unet.attn_processors), dict(vars(pipe.scheduler))

    def fail(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr(engine, "binding_loss", fail)
    with pytest.raises(error):
        made(pipe)
    assert all(p is processors[name] for name, p in pipe.unet.attn_processors.items())
    assert vars(pipe.scheduler) == scheduler
    assert pipe.unet.training
    assert weight.requires_grad
    assert weight.grad is None
    assert attachment_of(pipe) is attachment
    assert attachment.enabled
    assert not attachment.is_frozen


def test_mistakes(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"scale": -1.0}, "scale of at least 0"),
        ({"scale": float("nan")}, "scale of at least 0"),
        ({"steps": -1}, "steps of at least 0"),
        ({"resolution": 0}, "resolution of at least 1"),
        ({"resolution": 7}, "at 49 positions"),
        ({"seeds": [1]}, "a seed for each"),
    ):
        with pytest.raises(DataError, match=message):
            made(pipe, **changes)
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(DataError, match=r"maskunet\[syngen\]"):
        syngen(pipe, PROMPTS, SEEDS)
    with pytest.raises(DataError, match=r"maskunet\[syngen\]"):
        syngen_side(pipe)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(DataError, match="attention processor"):
        made(pipe)
