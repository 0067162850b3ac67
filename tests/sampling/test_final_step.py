"""The last step is the pipeline's own: safety checker, watermark, precision and values of the images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from maskunet.sampling import StepwiseSampler, generate
from maskunet.sampling.final_step import is_black
from maskunet.sampling.offload import upcast_decoder
from tiny_checker import add_checker

PROMPTS, SEEDS = ["a red circle", "b"], [3, 9]


def finished(pipe: Any) -> Tensor:
    sampler = StepwiseSampler(pipe, PROMPTS, seeds=SEEDS, num_inference_steps=2, guidance_scale=5.0)
    return sampler.finish()


def generated(pipe: Any) -> Tensor:
    return generate(pipe, PROMPTS, seeds=SEEDS, num_inference_steps=2, guidance_scale=5.0, progress=False).tensor


@pytest.mark.parametrize("flagged", [0, 1])
def test_the_safety_checker_is_asked(pipe: Any, flagged: int) -> None:
    images = finished(pipe)
    add_checker(pipe, images[flagged], images[1 - flagged])
    checked = finished(pipe)
    assert is_black(checked).tolist() == [i == flagged for i in range(2)]
    assert torch.equal(checked, generated(pipe))
    assert torch.equal(checked[1 - flagged], images[1 - flagged])


def test_the_watermark_is_applied(make_pipe: Callable[..., Any]) -> None:
    class Watermark:
        def apply_watermark(self, images: Tensor) -> Tensor:
            images = images.clone()
            images[..., 0, :] = 0.5
            return images

    pipe = make_pipe("sdxl")
    plain = finished(pipe)
    pipe.watermark = Watermark()
    marked = finished(pipe)
    assert torch.equal(marked, generated(pipe))
    assert torch.equal(marked[..., 1:, :], plain[..., 1:, :])
    assert bool((marked[..., 0, :] == 0.75).all())


@pytest.mark.filterwarnings("ignore:.*upcast_vae:FutureWarning")  # diffusers' own call
@pytest.mark.parametrize(("kind", "expected"), [("sd1", torch.float16), ("sdxl", torch.float32)])
def test_the_decoder_runs_in_the_precision_of_the_pipeline(
    make_pipe: Callable[..., Any], kind: str, expected: torch.dtype
) -> None:
    """Diffusers upcasts SDXL's decoder alone, although the config of every autoencoder says `force_upcast`."""
    pipe = make_pipe(kind)
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    pipe.register_modules(**copy.deepcopy(networks))  # other tests share them, and half precision loses digits
    pipe.to(torch.float16)
    assert pipe.vae.config.force_upcast
    precisions: list[torch.dtype] = []
    decode = pipe.vae.decode

    def spy(latents: Tensor, *args: Any, **options: Any) -> Any:
        precisions.append(latents.dtype)
        return decode(latents, *args, **options)

    pipe.vae.decode = spy
    images = generated(pipe)
    own = finished(pipe)
    with upcast_decoder(pipe):  # as a search and SynGen run
        under_gradients = finished(pipe)
    assert precisions == [expected] * 3
    assert pipe.vae.dtype == torch.float16
    torch.testing.assert_close(own, images, atol=1e-3, rtol=0)
    assert torch.equal(own, under_gradients)


def test_a_decoder_offloaded_by_groups_may_stay_so(pipe: Any) -> None:
    """No gradient flows through the last step."""
    expected = finished(pipe)
    pipe.vae = copy.deepcopy(pipe.vae)
    apply_group_offloading(pipe.vae, onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(finished(pipe), expected)
