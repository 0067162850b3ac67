"""A search with accelerate's offload on: gradients find the weights, and the hooks are as they were afterwards."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook, UserCpuOffloadHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

import maskunet as mu
from maskunet.errors import DataError, RewardError
from maskunet.sampling.offload import without_offload
from maskunet.searching import SearchConfig, SearchResult
from maskunet.searching import pipeline_state as preparation

CPU = torch.device("cpu")
CONFIG = SearchConfig(num_inference_steps=2, iterations=2, guidance_scale=4.0, learning_rate=0.5, initial_logit=1.0)


class Away(CpuOffload):  # type: ignore[misc]
    """Model offload on one device: the data of the parameters, in place, is what comes and goes."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        if not hasattr(self, "home"):
            self.home = {name: p.data for name, p in module.named_parameters()}
        for p in module.parameters():
            p.data = torch.zeros_like(p.data)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.prev_module_hook is not None:
            self.prev_module_hook.offload()
        for name, p in module.named_parameters():
            p.data = self.home[name]
        return args, kwargs


def by_model(pipe: Any) -> None:
    before = None
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        hook = Away(CPU, before)
        add_hook_to_module(part, hook, append=True)
        before = UserCpuOffloadHook(part, hook)


def by_layer(pipe: Any) -> None:
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(part, execution_device=CPU)


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


def searched(pipe: Any, reward: Any = redness) -> SearchResult:
    return mu.search(pipe, ["a b", "c d"], reward, CONFIG, progress=False)


def hooks(pipe: Any) -> list[Any]:
    modules = [m for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules()]
    return [(m.__dict__.get("_hf_hook"), m.__dict__.get("_old_forward"), m.__dict__.get("forward")) for m in modules]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(x is y for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True))


def away(part: nn.Module) -> bool:
    return all(p.device.type == "meta" or not bool(p.any()) for p in part.parameters())


@pytest.fixture
def fresh(pipe: Any) -> Any:
    return copy.deepcopy(pipe)  # its parts are shared among tests


@pytest.mark.parametrize("offload", [by_model, by_layer])
def test_a_search_with_offload_is_the_one_without(fresh: Any, offload: Callable[[Any], None]) -> None:
    expected = searched(fresh)
    offload(fresh)
    fresh.text_encoder.requires_grad_(True)
    before, seen = hooks(fresh), []

    def looks(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append([away(part) for part in (fresh.unet, fresh.vae)])
        return redness(pictures, prompts)

    found = searched(fresh, looks)
    assert seen[:-1] == [[False, False]] * 7  # the seeds' own pictures, then iterates
    assert seen[-1:] == [[True, True]]  # finished pictures
    assert torch.equal(found.tensor, expected.tensor)
    assert all(torch.equal(m, found.masks.tensors()[n]) for n, m in expected.masks.tensors().items())
    assert same(hooks(fresh), before)
    assert all(p.requires_grad for p in fresh.text_encoder.parameters())
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "generator": generators, "output_type": "pt"}
    again = fresh(["a b", "c d"], **options).images
    torch.testing.assert_close(again, expected.base, atol=1e-5, rtol=1e-5)


def test_model_offload_alone_takes_the_weights_from_under_the_gradient(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the suspension is for."""
    expected = searched(fresh).masks.tensors()
    by_model(fresh)
    monkeypatch.setattr(preparation, "without_offload", lambda *parts: contextlib.nullcontext())
    try:
        found = searched(fresh).masks.tensors()
    except RewardError:
        return
    assert not all(torch.equal(m, found[n]) for n, m in expected.items())


@pytest.mark.parametrize("offload", [by_model, by_layer])
def test_offload_is_back_after_a_failure(fresh: Any, offload: Callable[[Any], None]) -> None:
    offload(fresh)
    before = hooks(fresh)

    def fails(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(fresh, fails)
    assert same(hooks(fresh), before)
    assert away(fresh.unet)
    assert away(fresh.vae)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_group_offload_is_refused(fresh: Any, part: str) -> None:
    before = [p.requires_grad for p in fresh.unet.parameters()]
    apply_group_offloading(getattr(fresh, part), onload_device=CPU, offload_type="leaf_level")
    with pytest.raises(DataError, match=r"without diffusers' group offload.*enable_model_cpu_offload"):
        searched(fresh)
    assert [p.requires_grad for p in fresh.unet.parameters()] == before


def test_group_offload_of_what_no_gradient_goes_through(fresh: Any) -> None:
    expected = searched(fresh)
    apply_group_offloading(fresh.text_encoder, onload_device=CPU, offload_type="leaf_level")
    assert torch.equal(searched(fresh).tensor, expected.tensor)


def test_what_ran_before_makes_room_and_other_hooks_stay() -> None:
    text, unet = nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)
    gone = []
    first = CpuOffload(CPU)
    first.init_hook = gone.append  # type: ignore[method-assign]
    align = AlignDevicesHook(io_same_device=True)
    add_hook_to_module(unet, align)
    add_hook_to_module(unet, CpuOffload(CPU, UserCpuOffloadHook(text, first)), append=True)
    hook = unet._hf_hook
    assert isinstance(hook, SequentialHook)
    with without_offload(unet, None):
        assert unet._hf_hook.hooks[0] is align
        unet(torch.ones(1, 2))
        assert gone == [text]
    assert unet._hf_hook is hook
    with without_offload(unet, text):  # both are to stay
        unet(torch.ones(1, 2))
    assert gone == [text]
