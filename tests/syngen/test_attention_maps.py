"""Capturing processors: the same output, the right maps, and the original processors afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import maskunet as mu
from maskunet.errors import DataError
from maskunet.maskers import RandomMasks
from maskunet.syngen.attention_maps import capture_maps, cross_attention

Inputs = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("masked", [False, True])
def test_output_is_the_same_and_maps_are_probabilities(any_unet: Any, inputs: Inputs, masked: bool) -> None:
    if masked:
        mu.attach(any_unet, RandomMasks.for_unet(any_unet, density=0.7))
    arguments = inputs(any_unet)
    plain = any_unet(**arguments).sample
    for positions in (64, 16):
        with capture_maps(any_unet, positions) as maps:
            torch.testing.assert_close(any_unet(**arguments).sample, plain, atol=1e-5, rtol=1e-5)
        if positions in maps.sizes:
            mean = maps.mean()
            assert mean.shape == (2, positions, 5)
            torch.testing.assert_close(mean.sum(2), torch.ones(2, positions))
    assert 16 in maps.sizes
    assert torch.equal(any_unet(**arguments).sample, plain)


def test_maps_are_the_mean_over_heads_and_layers(sd1: Any, inputs: Inputs) -> None:
    scores = []
    for layer in cross_attention(sd1):
        compute = layer.get_attention_scores
        layer.get_attention_scores = lambda *a, compute=compute: scores.append(compute(*a)) or scores[-1]
    with capture_maps(sd1, 64) as maps, torch.no_grad():
        sd1(**inputs(sd1))
    assert len(scores) == 3  # one layer on the way down, two on the way up
    expected = torch.stack([s.view(2, 4, 64, 5).mean(1) for s in scores]).mean(0)
    torch.testing.assert_close(maps.mean(), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_processors_are_restored(sd1: Any, error: type[BaseException]) -> None:
    processors = dict(sd1.attn_processors)
    with capture_maps(sd1, 64):
        assert sd1.attn_processors.keys() == processors.keys()
        changed = {name for name, p in sd1.attn_processors.items() if p is not processors[name]}
        assert changed == {name for name in processors if ".attn2." in name}
    with pytest.raises(error), capture_maps(sd1, 64):
        raise error
    assert all(p is processors[name] for name, p in sd1.attn_processors.items())


def test_unsuitable_networks_are_refused(sd1: Any, inputs: Inputs) -> None:
    with capture_maps(sd1, 49) as maps:
        sd1(**inputs(sd1))
    with pytest.raises(DataError, match="at 49 positions, this U-Net's layers have 64, 16, 4"):
        maps.mean()
    with pytest.raises(DataError, match="Linear has none"):
        cross_attention(torch.nn.Linear(1, 1))
    sd1.fuse_qkv_projections()
    with pytest.raises(DataError, match="FusedAttnProcessor2_0"), capture_maps(sd1, 64):
        pass
