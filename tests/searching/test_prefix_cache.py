"""The cache of the unmasked prefix: what it holds, and that it changes no bit."""

from __future__ import annotations

from typing import Any

import torch

from maskunet.searching.prefix_cache import PrefixCache, unmasked_prefix
from maskunet.targets import describe


def test_the_prefix_ends_at_the_first_masked_block(pipe: Any) -> None:
    down = [f"down_blocks.{i}" for i in range(3)]
    expected = ["time_embedding", "conv_in", *down, "mid_block", "up_blocks.0"]
    assert unmasked_prefix(pipe.unet, describe(pipe.unet, "decoder-attention")) == expected
    assert unmasked_prefix(pipe.unet, describe(pipe.unet, "all")) == ["time_embedding", "conv_in"]


def test_the_prefix_is_computed_once_until_the_cache_is_cleared(pipe: Any) -> None:
    forwards = [m.__dict__.get("forward") for m in pipe.unet.modules()]
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}

    def generate(seed: int) -> torch.Tensor:
        return pipe(["a"], generator=torch.Generator().manual_seed(seed), **options).images

    expected = [generate(0), generate(1)]
    network = describe(pipe.unet, "decoder-attention")
    count = len(unmasked_prefix(pipe.unet, network))
    cache = PrefixCache(pipe.unet, network)
    assert torch.equal(generate(0), expected[0])
    assert torch.equal(generate(0), expected[0])
    assert cache.computed == count
    assert not torch.equal(generate(1), expected[1])  # the prefix is that of the first call
    cache.clear()
    assert torch.equal(generate(1), expected[1])
    assert cache.computed == 2 * count
    cache.remove()
    assert [m.__dict__.get("forward") for m in pipe.unet.modules()] == forwards
