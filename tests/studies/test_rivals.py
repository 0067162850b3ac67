"""The rivals of a mask search: the images they select; the pipeline does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from benchmarks.studies import rivals
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.rewards import FunctionReward
from maskunet.searching.drafts import candidate_seeds

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0}


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


REWARD = FunctionReward(redness)


def rewards(images: Tensor) -> Tensor:
    return redness(images, PROMPTS)


def test_plain_is_the_pipeline(pipe: Any) -> None:
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    expected = pipe(PROMPTS, generator=generators, output_type="pt", **OPTIONS).images
    torch.testing.assert_close(rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [rivals.best_of_n, rivals.random_masks])
def test_more_samples_raise_the_reward(pipe: Any, method: Callable[..., Tensor]) -> None:
    values = [rewards(method(pipe, PROMPTS, SEEDS, REWARD, count=n, **OPTIONS)) for n in (1, 2, 4)]
    torch.testing.assert_close(values[0], rewards(rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS)))
    # An image that is sampled twice may differ in its last bits.
    assert bool((values[1] >= values[0] - 1e-6).all())
    assert bool((values[2] >= values[1] - 1e-6).all())
    assert float(values[2].sum()) > float(values[0].sum())
    assert attachment_of(pipe) is None


def test_the_best_noises_give_the_best_images(pipe: Any) -> None:
    seeds, images, values = rivals.best_noises(pipe, PROMPTS, SEEDS, REWARD, count=4, **OPTIONS)
    assert seeds != SEEDS
    assert set(seeds) <= {s for j in range(4) for s in candidate_seeds(SEEDS, j)}
    torch.testing.assert_close(rivals.plain(pipe, PROMPTS, seeds, **OPTIONS), images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, rewards(images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_particles_follow_the_reward(pipe: Any, scheduler: str) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(**({"skip_prk_steps": True} if scheduler[0] == "P" else {}))
    no_noise = {"eta": 0.0} if scheduler[:4] == "DDIM" else {}
    one = rivals.particles(pipe, PROMPTS, SEEDS, REWARD, count=1, **no_noise, **OPTIONS)
    torch.testing.assert_close(one, rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS), atol=1e-5, rtol=1e-5)
    many = rivals.particles(pipe, PROMPTS, SEEDS, REWARD, count=4, scale=100.0, every=2, **OPTIONS)
    assert float(rewards(many).sum()) > float(rewards(one).sum())
    # With a huge weight all particles of a prompt become copies of its best one; prompts stay separate.
    first = rivals.particles(pipe, PROMPTS[:1], SEEDS[:1], REWARD, count=4, scale=100.0, every=2, **OPTIONS)
    assert first.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("method", ["noise_optimisation", "gradient_guidance"])
def test_an_attached_masker_gets_no_gradient(pipe: Any, method: str) -> None:
    masker = mu.MaskGenerator.for_unet(pipe.unet, seed=0).requires_grad_(True)
    mu.attach(pipe, masker)
    options = OPTIONS | ({"iterations": 2} if method == "noise_optimisation" else {})
    getattr(rivals, method)(pipe, PROMPTS, SEEDS, REWARD, **options)
    assert all(p.grad is None and p.requires_grad for p in masker.parameters())


def test_a_decoder_that_overflows_decodes_in_single_precision(sdxl_pipe: Any) -> None:
    pipe = copy.deepcopy(sdxl_pipe)
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    dtypes = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    options = OPTIONS | {"num_inference_steps": 2}
    rivals.plain(pipe, PROMPTS, SEEDS, **options)
    rivals.particles(pipe, PROMPTS, SEEDS, REWARD, count=2, every=1, **options)
    rivals.gradient_guidance(pipe, PROMPTS, SEEDS, REWARD, **options)
    rivals.noise_optimisation(pipe, PROMPTS, SEEDS, REWARD, iterations=1, **options)
    assert set(dtypes) == {torch.float32}
    assert pipe.vae.dtype == torch.float16


def test_gradients_raise_the_reward(pipe: Any) -> None:
    base = rewards(rivals.plain(pipe, PROMPTS, SEEDS, **OPTIONS))
    guided = rewards(rivals.gradient_guidance(pipe, PROMPTS, SEEDS, REWARD, scale=0.3, **OPTIONS))
    assert bool((guided > base).all())
    none = rivals.gradient_guidance(pipe, PROMPTS, SEEDS, REWARD, scale=0.0, **OPTIONS)
    torch.testing.assert_close(rewards(none), base, atol=1e-5, rtol=1e-5)
    noise = rewards(
        rivals.noise_optimisation(pipe, PROMPTS, SEEDS, REWARD, iterations=5, learning_rate=20.0, **OPTIONS)
    )
    assert float((noise - base).sum()) > 0
    assert all(p.grad is None for p in pipe.unet.parameters())
