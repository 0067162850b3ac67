"""Cached latents: encoded once, batches from a generator alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from maskunet.data import CachedLatents, PromptEmbeds, sample_at
from maskunet.errors import DataError
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene
from maskunet.zoo.dataset import encode_scenes, scenes_of


def test_encoding_is_the_autoencoders(pipe: StableDiffusionPipeline) -> None:
    scenes = [training_scene(i) for i in range(5)]
    cached = encode_scenes(pipe, scenes, "art")
    with torch.no_grad():
        posterior = pipe.vae.encode(draw(scenes, "art") * 2 - 1).latent_dist
    scale = pipe.vae.config.scaling_factor
    torch.testing.assert_close(cached.mean.float(), posterior.mean * scale, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(cached.std.float(), posterior.std * scale, atol=1e-3, rtol=1e-3)
    assert len(cached) == 5
    assert cached.captions == tuple(s.caption for s in scenes)


def made() -> CachedLatents:
    mean = torch.arange(10.0)[:, None, None, None].expand(10, 2, 4, 4)
    return CachedLatents(mean, torch.full_like(mean, 0.01), tuple(map(str, range(10))))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_latents_are_those_asked_for_and_do_not_depend_on_their_batch() -> None:
    whole = made().latents([7, 1, 4], generators(3))
    torch.testing.assert_close(whole.mean((1, 2, 3)).round(), torch.tensor([7.0, 1.0, 4.0]))
    assert torch.equal(whole[2:], made().latents([4], generators(3)[2:]))
    assert not torch.equal(whole[0] - 7, whole[1] - 1)


def test_captions_must_match_latents() -> None:
    with pytest.raises(DataError, match="as many captions"):
        CachedLatents(torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), ("a", "b"))


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 3))
def test_each_sample_comes_once_an_epoch(count: int, epoch: int, seed: int) -> None:
    seen = [sample_at(p, count, seed) for p in range(epoch * count, (epoch + 1) * count)]
    assert sorted(seen) == list(range(count))


def test_epochs_have_orders_of_their_own() -> None:
    orders = [[sample_at(p, 50, seed) for p in range(50 * e, 50 * e + 50)] for e, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_prompt_embeds_are_the_text_encoders(pipe: StableDiffusionPipeline) -> None:
    ids = pipe.tokenizer(["a red circle"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(ids).last_hidden_state
    embeds, pooled = PromptEmbeds(pipe)(["a red circle"])
    torch.testing.assert_close(embeds, expected)
    assert pooled is None
    kept, _ = PromptEmbeds(pipe, ["a red circle", ""])(["a red circle", ""])
    torch.testing.assert_close(kept[:1], expected, atol=2e-3, rtol=2e-3)


def test_bundled_worlds_by_name() -> None:
    scenes, style = scenes_of("shapes-art", 3, seed=5)
    assert style == "art"
    assert scenes == [training_scene(i, 5) for i in range(3)]
    with pytest.raises(DataError, match="shapes, shapes-art"):
        scenes_of("laion", 3, 0)


def test_nothing_to_encode_is_refused(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(DataError, match="0 scenes"):
        encode_scenes(pipe, [])
