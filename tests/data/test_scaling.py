"""The scale of latents, against diffusers' own pipelines: with the statistics of Playground 2.5 and without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.data import encode_posterior, scaling
from maskunet.data.encoding import _hash_vae
from maskunet.errors import SettingError
from maskunet.shapes.scenes import training_scene
from maskunet.zoo.dataset import encode_scenes

STATISTICS = {"latents_mean": [-1.6, 1.2, 0.4, -0.9], "latents_std": [8.4, 5.1, 3.0, 0.7], "scaling_factor": 0.5}


def with_statistics(pipe: Any) -> Any:
    pipe.vae = copy.deepcopy(pipe.vae)
    pipe.vae.register_to_config(**STATISTICS)
    return pipe


@pytest.fixture
def make_playground(pipe: Any, sdxl_pipe: Any) -> Callable[[str], Any]:
    pipes = {"sd1": pipe, "sdxl": sdxl_pipe}
    return lambda style: with_statistics(pipes[style])


@pytest.mark.parametrize("style", ["sd1", "sdxl"])
def test_latents_are_those_of_the_image_to_image_pipeline(make_playground: Callable[[str], Any], style: str) -> None:
    pipe = make_playground(style)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if style == "sdxl":
        other = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
        arguments: tuple[Any, ...] = (None, 2, 1, torch.float32, torch.device("cpu"), None)
        expected = other.prepare_latents(images * 2 - 1, *arguments[:5], seeded(), add_noise=False)
    else:  # it adds noise at once; without a scheduler's alphas below one, none is left
        components = pipe.components | {
            "scheduler": diffusers.DDIMScheduler(trained_betas=[0.0] * 1000, steps_offset=1, clip_sample=False)
        }
        other = diffusers.StableDiffusionImg2ImgPipeline(**components)
        timestep = torch.tensor([0, 0])
        expected = other.prepare_latents(images * 2 - 1, timestep, 2, 1, torch.float32, torch.device("cpu"), seeded())
    mean, std = encode_posterior(pipe.vae, images, statistics=scaling.uses_statistics(pipe))
    noise = torch.randn(mean.shape, generator=seeded())
    torch.testing.assert_close(mean.float() + std.float() * noise, expected, atol=2e-3, rtol=2e-3)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_scaling_and_unscaling_are_inverse(make_playground: Callable[[str], Any]) -> None:
    vae, z = make_playground("sdxl").vae, torch.randn(2, 4, 8, 8, generator=seeded())
    scaled = scaling.scale_latents(vae, z)
    mean, std = (torch.tensor(STATISTICS[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(scaled, 0.5 * (z - mean) / std)
    torch.testing.assert_close(scaling.unscale_latents(vae, scaled), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scaling.scale_deviations(vae, z.abs()), 0.5 * z.abs() / std)
    assert torch.equal(scaling.unscale_latents(vae, z, statistics=False), z / 0.5)


def test_half_precision_rounds_once(pipe: Any) -> None:
    """An autoencoder in bfloat16 gives latents that are scaled in float32."""
    vae = copy.deepcopy(pipe.vae).to(torch.bfloat16)
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        posterior = vae.encode(images.bfloat16() * 2 - 1).latent_dist
    mean, std = encode_posterior(vae, images)
    factor = vae.config.scaling_factor
    assert torch.equal(mean, (posterior.mean.float() * factor).half())
    assert torch.equal(std, (posterior.std.float() * factor).half())


def test_a_data_set_is_encoded_as_its_pipeline_does(make_playground: Callable[[str], Any]) -> None:
    scenes = [training_scene(0)]
    means: dict[str, Tensor] = {}
    for style in ("sd1", "sdxl"):
        pipe = make_playground(style)
        means[style] = encode_scenes(pipe, scenes).mean.float()
        raw = means[style] / 0.5
        if style == "sdxl":
            mean, std = (torch.tensor(STATISTICS[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
            raw = raw * std + mean
        means[style] = raw
    torch.testing.assert_close(means["sd1"], means["sdxl"], atol=2e-2, rtol=2e-2)


def test_a_cache_of_latents_knows_their_statistics(make_playground: Callable[[str], Any], sdxl_pipe: Any) -> None:
    pipe = make_playground("sdxl")
    first = _hash_vae(pipe)
    pipe.vae.register_to_config(latents_mean=[0.0] * 4)
    second = _hash_vae(pipe)
    pipe.vae.register_to_config(latents_mean=None, latents_std=None)
    assert len({first, second, _hash_vae(pipe)}) == 3


def test_a_search_refuses_a_decoder_of_other_latents(make_playground: Callable[[str], Any]) -> None:
    pipe = make_playground("sdxl")
    decoder = diffusers.AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    with pytest.raises(SettingError, match=r"latents_mean and latents_std .* AutoencoderTiny without"):
        mu.search(pipe, ["a"], lambda images, prompts: images.mean((1, 2, 3)), decoder=decoder)
