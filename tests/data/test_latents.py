"""Cached latents: posteriors of the autoencoder, samples by generator, an order per epoch."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from maskunet.data import CachedLatents, encode_posterior, sample_index
from maskunet.errors import DataError
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene


def test_posteriors_are_the_autoencoders_scaled(pipe: StableDiffusionPipeline) -> None:
    images = draw([training_scene(i) for i in range(5)], "art")
    mean, std = encode_posterior(pipe.vae, images)
    with torch.no_grad():
        posterior = pipe.vae.encode(images * 2 - 1).latent_dist
    scale = pipe.vae.config.scaling_factor
    assert mean.dtype == std.dtype == torch.float16
    torch.testing.assert_close(mean.float(), posterior.mean * scale, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(std.float(), posterior.std * scale, atol=1e-3, rtol=1e-3)


def numbered_latents() -> CachedLatents:
    """Ten samples whose mean is their number."""
    mean = torch.arange(10.0)[:, None, None, None].expand(10, 2, 4, 4)
    return CachedLatents(mean, torch.full_like(mean, 0.01), tuple(map(str, range(10))))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_latents_do_not_depend_on_their_batch() -> None:
    batch = numbered_latents().latents([7, 1, 4], generators(3))
    torch.testing.assert_close(batch.mean((1, 2, 3)).round(), torch.tensor([7.0, 1.0, 4.0]))
    assert torch.equal(batch[2:], numbered_latents().latents([4], generators(3)[2:]))
    assert not torch.equal(batch[0] - 7, batch[1] - 1)


def test_a_split_keeps_the_order() -> None:
    first, last = numbered_latents().split(7)
    assert first.captions == tuple("0123456")
    assert last.captions == tuple("789")
    assert last.mean[:, 0, 0, 0].tolist() == [7, 8, 9]


def test_captions_must_match_latents() -> None:
    with pytest.raises(DataError, match="as many captions"):
        CachedLatents(torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), ("a", "b"))


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 3))
def test_each_sample_occurs_once_per_epoch(count: int, epoch: int, seed: int) -> None:
    indices = [sample_index(p, count, seed) for p in range(epoch * count, (epoch + 1) * count)]
    assert sorted(indices) == list(range(count))


def test_each_epoch_and_seed_has_its_own_order() -> None:
    orders = [[sample_index(p, 50, seed) for p in range(50 * e, 50 * e + 50)] for e, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
