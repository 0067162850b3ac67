"""Cached latents: encoded once, batches from a generator alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.data import CachedLatents, encode_scenes
from maskunet.data.cached import scenes_of
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene


def test_encoding_is_the_autoencoders(pipe: StableDiffusionPipeline) -> None:
    scenes = [training_scene(i) for i in range(5)]
    cached = encode_scenes(pipe, scenes, "art")
    with torch.no_grad():
        posterior = pipe.vae.encode(draw(scenes, "art") * 2 - 1).latent_dist
    scale = pipe.vae.config.scaling_factor
    torch.testing.assert_close(cached.mean.float(), posterior.mean * scale, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(cached.std.float(), posterior.std * scale, atol=1e-3, rtol=1e-3)
    assert len(cached) == 5
    assert cached.input_ids.shape == (5, pipe.tokenizer.model_max_length)
    expected = pipe.tokenizer(scenes[2].caption, padding="max_length", truncation=True).input_ids
    assert cached.input_ids[2].tolist() == expected


def made() -> CachedLatents:
    ids = torch.arange(10)[:, None].expand(10, 3)
    mean = torch.arange(10.0)[:, None, None, None].expand(10, 2, 4, 4)
    return CachedLatents(mean, torch.full_like(mean, 0.01), ids, torch.full((1, 3), 99))


def test_batches_repeat_and_pair_latents_with_their_captions() -> None:
    first = made().batch(64, torch.Generator().manual_seed(3))
    again = made().batch(64, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    latents, ids = first
    torch.testing.assert_close(latents.mean((1, 2, 3)).round().long(), ids[:, 0])
    assert len(ids[:, 0].unique()) == 10


def test_caption_dropout_is_a_share() -> None:
    _, ids = made().batch(4000, torch.Generator().manual_seed(0), 0.25)
    share = float((ids[:, 0] == 99).float().mean())
    assert share == pytest.approx(0.25, abs=0.03)


def test_bundled_worlds_by_name() -> None:
    scenes, style = scenes_of("shapes-art", 3, seed=5)
    assert style == "art"
    assert scenes == [training_scene(i, 5) for i in range(3)]
    with pytest.raises(mu.DataError, match="shapes, shapes-art"):
        scenes_of("laion", 3, 0)


def test_nothing_to_encode_is_refused(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(mu.DataError, match="0 scenes"):
        encode_scenes(pipe, [])
