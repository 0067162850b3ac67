"""A search under accelerate's offload: gradients find the weights, and the hooks are restored."""

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
from maskunet.searching import SearchConfig, SearchResult, pipeline_state

CPU = torch.device("cpu")
CONFIG = SearchConfig.preset(
    "masks", num_inference_steps=2, iterations=2, guidance_scale=4.0, learning_rate=0.5, initial_logit=1.0
)


class SameDeviceOffload(CpuOffload):  # type: ignore[misc]
    """Model offload on one device: the data of the parameters is swapped in place."""

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
    previous = None
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        hook = SameDeviceOffload(CPU, previous)
        add_hook_to_module(part, hook, append=True)
        previous = UserCpuOffloadHook(part, hook)


def by_layer(pipe: Any) -> None:
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(part, execution_device=CPU)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def search(pipe: Any, reward: Any = redness) -> SearchResult:
    return mu.search(pipe, ["a b", "c d"], reward, CONFIG, progress=False)


def hooks(pipe: Any) -> list[Any]:
    modules = [m for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules()]
    return [(m.__dict__.get("_hf_hook"), m.__dict__.get("_old_forward"), m.__dict__.get("forward")) for m in modules]


def are_same(first: list[Any], second: list[Any]) -> bool:
    return all(x is y for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True))


def is_away(part: nn.Module) -> bool:
    return all(p.device.type == "meta" or not bool(p.any()) for p in part.parameters())


@pytest.fixture
def fresh(pipe: Any) -> Any:
    return copy.deepcopy(pipe)  # its parts are shared among tests


@pytest.mark.parametrize("offload", [by_model, by_layer])
def test_a_search_with_offload_is_the_one_without(fresh: Any, offload: Callable[[Any], None]) -> None:
    expected = search(fresh)
    offload(fresh)
    fresh.text_encoder.requires_grad_(True)
    expected_hooks, seen = hooks(fresh), []

    def observe(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append([is_away(part) for part in (fresh.unet, fresh.vae)])
        return redness(images, prompts)

    result = search(fresh, observe)
    assert seen[:-1] == [[False, False]] * 7  # the seeds' own images, then iterates
    assert seen[-1:] == [[True, True]]  # finished images
    assert torch.equal(result.tensor, expected.tensor)
    assert all(torch.equal(m, result.masks.tensors()[n]) for n, m in expected.masks.tensors().items())
    assert are_same(hooks(fresh), expected_hooks)
    assert all(p.requires_grad for p in fresh.text_encoder.parameters())
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "generator": generators, "output_type": "pt"}
    again = fresh(["a b", "c d"], **options).images
    torch.testing.assert_close(again, expected.base, atol=1e-5, rtol=1e-5)


def test_model_offload_alone_takes_the_weights_from_under_the_gradient(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason for the suspension."""
    expected = search(fresh).masks.tensors()
    by_model(fresh)
    monkeypatch.setattr(pipeline_state, "without_offload", lambda *parts: contextlib.nullcontext())
    try:
        masks = search(fresh).masks.tensors()
    except RewardError:
        return
    assert not all(torch.equal(m, masks[n]) for n, m in expected.items())


@pytest.mark.parametrize("offload", [by_model, by_layer])
def test_offload_is_restored_after_a_failure(fresh: Any, offload: Callable[[Any], None]) -> None:
    offload(fresh)
    before = hooks(fresh)

    def fail(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(fresh, fail)
    assert are_same(hooks(fresh), before)
    assert is_away(fresh.unet)
    assert is_away(fresh.vae)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_group_offload_is_refused(fresh: Any, part: str) -> None:
    before = [p.requires_grad for p in fresh.unet.parameters()]
    apply_group_offloading(getattr(fresh, part), onload_device=CPU, offload_type="leaf_level")
    with pytest.raises(DataError, match=r"without diffusers' group offload.*enable_model_cpu_offload"):
        search(fresh)
    assert [p.requires_grad for p in fresh.unet.parameters()] == before


def test_group_offload_of_a_network_without_gradient_is_allowed(fresh: Any) -> None:
    expected = search(fresh)
    apply_group_offloading(fresh.text_encoder, onload_device=CPU, offload_type="leaf_level")
    assert torch.equal(search(fresh).tensor, expected.tensor)


def test_the_previous_model_is_offloaded_and_other_hooks_stay() -> None:
    text, unet = nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)
    offloaded = []
    first = CpuOffload(CPU)
    first.init_hook = offloaded.append  # type: ignore[method-assign]
    align = AlignDevicesHook(io_same_device=True)
    add_hook_to_module(unet, align)
    add_hook_to_module(unet, CpuOffload(CPU, UserCpuOffloadHook(text, first)), append=True)
    hook = unet._hf_hook
    assert isinstance(hook, SequentialHook)
    with without_offload(unet, None):
        assert unet._hf_hook.hooks[0] is align
        unet(torch.ones(1, 2))
        assert offloaded == [text]
    assert unet._hf_hook is hook
    with without_offload(unet, text):  # both stay
        unet(torch.ones(1, 2))
    assert offloaded == [text]
