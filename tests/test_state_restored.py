"""Training, searching, evaluating and generating leave a pipeline and the process as they were, also after an error."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.data import CachedLatents
from maskunet.generators import kept_generators
from maskunet.maskers import Masker
from maskunet.sampling import generate
from maskunet.searching import SearchConfig
from maskunet.shapes.scenes import training_scene
from maskunet.syngen import shapes_phrases, syngen
from maskunet.training import METHODS, build_method
from maskunet.training import prediction_errors as module
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=2,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    gradient_checkpointing=True,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=2,
    validation_prompts=("a b",),
    validation_num_inference_steps=1,
    validation_steps=1,
)
pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")
_NETWORKS = ("unet", "vae", "text_encoder")


def adapter_state(layer: nn.Module) -> tuple[Any, ...] | None:
    if not hasattr(layer, "scaling"):
        return None
    layer_any: Any = layer
    return (
        list(layer_any.active_adapters),
        layer_any._disable_adapters,
        dict(layer_any.scaling),
        sorted(layer_any.lora_A),
    )


def network_state(network: nn.Module, values: bool = True) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, part in network.named_modules():
        checkpointing = part.__dict__.get("_gradient_checkpointing_func")
        forward = part.__dict__.get("forward")
        state[f"{name} module"] = (
            id(part),
            part.training,
            getattr(part, "gradient_checkpointing", None),
            getattr(checkpointing, "followed", checkpointing),
            getattr(forward, "attachment", forward),
            adapter_state(part),
            len(part._forward_pre_hooks),
            len(part._forward_hooks),
        )
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        grad = None if tensor.grad is None else tensor.grad.tolist()
        content = tensor.detach().tolist() if values else None
        state[f"{name} tensor"] = (tensor.dtype, tensor.device, tensor.requires_grad, grad, content)
    return state


def backend_state() -> list[Any]:
    flags: list[Any] = [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision]
    flags += [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")]
    flags += [torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), torch.get_num_threads()]
    flags += [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")]
    for library in (diffusers, transformers):
        logs = library.utils.logging
        flags += [logs.get_verbosity(), logs.is_progress_bar_enabled()]
    return flags


def process_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "accelerate": [dict(kind._shared_state) for kind in (AcceleratorState, GradientState, PartialState)],
        "backends": backend_state(),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    }


def state_of(pipe: Any, trains_all: bool = False) -> dict[str, Any]:
    state = process_state()
    for name in _NETWORKS:
        state[name] = network_state(getattr(pipe, name), values=not (trains_all and name == "unet"))
    attachment = attachment_of(pipe)
    state["attachment"] = None
    if attachment is not None:
        kept = (id(attachment), attachment.strength, attachment.seed, attachment.enabled, attachment.is_frozen)
        state["attachment"] = kept, network_state(attachment.masker)
    state["scheduler"] = id(pipe.scheduler), {name: id(value) for name, value in vars(pipe.scheduler).items()}
    state["bar"] = dict(getattr(pipe, "_progress_bar_config", {}))
    return state


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = []
    for key in before:
        if before[key] == after[key]:
            continue
        if isinstance(before[key], dict):
            names = before[key].keys() | after[key].keys()
            found += [f"{key}: {n}" for n in sorted(names) if before[key].get(n) != after[key].get(n)][:5]
        else:
            found.append(f"{key}: {before[key]!r:.300} became {after[key]!r:.300}")
    return found


@contextlib.contextmanager
def unchanged(pipe: Any, trains_all: bool = False) -> Iterator[None]:
    before = state_of(pipe, trains_all)
    try:
        yield
    finally:
        assert differences(before, state_of(pipe, trains_all)) == []


def new_masker(pipe: Any, seed: int = 0) -> Masker:
    return mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(initial_logit=0.0), seed=seed)


@pytest.fixture
def lived_in(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A pipeline in use: two LoRAs, one of them on, a masker, some layers checkpointed, trained and with gradients."""
    peft = pytest.importorskip("peft")
    for name, scale in (("style", 0.5), ("detail", 1.0)):
        pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "proj_in"]), adapter_name=name)
        for layer in pipe.unet.modules():
            if hasattr(layer, "scaling"):
                layer.scaling[name] = scale  # type: ignore[operator, index]
                nn.init.normal_(layer.lora_B[name].weight, std=0.2)  # type: ignore[union-attr, index, arg-type]
    pipe.unet.set_adapter(["style"])
    pipe.unet.conv_in.requires_grad_(True)
    pipe.unet.conv_in.weight.grad = torch.ones_like(pipe.unet.conv_in.weight)
    pipe.unet.up_blocks[1].train()
    pipe.unet.enable_gradient_checkpointing()
    pipe.unet.down_blocks[0].gradient_checkpointing = False
    pipe.text_encoder.train()
    pipe.vae.decoder.requires_grad_(True)
    former = new_masker(pipe, seed=9)
    next(former.parameters()).requires_grad_(False)
    mu.attach(pipe, former, seed=3, strength=0.5)
    pipe(["a b"], num_inference_steps=1, output_type="latent")
    yield pipe
    pipe.text_encoder.eval()
    pipe.vae.requires_grad_(False)


@pytest.fixture
def live_accelerator() -> Iterator[Accelerator]:
    """An accelerator of the user's own, in another precision."""
    for kind in (AcceleratorState, GradientState, PartialState):
        kind._shared_state.clear()
    yield Accelerator(mixed_precision="bf16", gradient_accumulation_steps=7, cpu=True)
    for kind in (AcceleratorState, GradientState, PartialState):
        kind._shared_state.clear()


def latents(pipe: Any) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_training(
    lived_in: StableDiffusionPipeline,
    live_accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: type[BaseException] | None,
) -> None:
    data = latents(lived_in)
    built = build_method(method, lived_in, mu.LowRankMaskerConfig(initial_logit=0.0), rank=2, dropout=0.1)
    if method == "full":
        lived_in.unet.unload_lora()  # it would be trained
    real, calls = module.diffusion_errors, 0

    def fail(*args: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()  # not in validation
        if error is not None and calls == 4:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(module, "diffusion_errors", fail)
    outcome = contextlib.nullcontext() if error is None else pytest.raises(error)
    with unchanged(lived_in, trains_all=method == "full"), outcome:
        mu.train(lived_in, built, data, CONFIG, tmp_path, progress=False)
    assert live_accelerator.mixed_precision == "bf16"
    assert live_accelerator.gradient_accumulation_steps == 7
    assert calls == 4


def test_training_the_attached_masker_puts_it_back(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    masker = new_masker(pipe)
    former = mu.attach(pipe, masker, strength=0.25)
    start = [p.clone() for p in masker.parameters()]
    mu.train(pipe, masker, latents(pipe), CONFIG, tmp_path, progress=False)
    assert attachment_of(pipe) is former
    assert former.strength == 0.25
    assert any(not torch.equal(a, b) for a, b in zip(start, masker.parameters(), strict=True))
    assert all(p.grad is None for p in masker.parameters())


def test_an_error_before_the_first_step(
    lived_in: StableDiffusionPipeline, live_accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = latents(lived_in)
    masker = mu.LowRankMasker.for_unet(lived_in.unet, seed=0)
    with torch.no_grad():
        next(masker.parameters()).fill_(torch.nan)
    with unchanged(lived_in), pytest.raises(mu.MaskUNetError, match="holds NaN"):
        mu.train(lived_in, masker, data, CONFIG, tmp_path / "a", progress=False)
    with unchanged(lived_in), pytest.raises(mu.MaskUNetError):
        mu.train(lived_in, new_masker(lived_in), tmp_path / "nothing", CONFIG, tmp_path / "b", progress=False)
    config = mu.TrainConfig(**{**vars(CONFIG), "report_to": "paper"})
    with unchanged(lived_in), pytest.raises(mu.MaskUNetError, match="report_to"):
        mu.train(lived_in, new_masker(lived_in), data, config, tmp_path / "c", progress=False)


def test_a_process_without_an_accelerator_gets_none(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    kinds = (AcceleratorState, GradientState, PartialState)
    for kind in kinds:
        kind._shared_state.clear()
    with unchanged(pipe):
        mu.train(pipe, new_masker(pipe), latents(pipe), CONFIG, tmp_path, progress=False)
    assert [dict(kind._shared_state) for kind in kinds] == [{}, {}, {}]


class OpenTracker:
    """A tracker that must be finished."""

    name, finished = "open", False

    def finish(self) -> None:
        self.finished = True

    def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        pass


def test_trackers_are_finished_after_an_error(
    pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = OpenTracker()
    monkeypatch.setattr(
        "maskunet.training.trainer.start_trackers", lambda accelerator, *_: accelerator.trackers.append(tracker)
    )

    real = module.diffusion_errors

    def fail(*args: Any, **options: Any) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyboardInterrupt
        return real(*args, **options)

    data = latents(pipe)
    monkeypatch.setattr(module, "diffusion_errors", fail)
    with pytest.raises(KeyboardInterrupt):
        mu.train(pipe, new_masker(pipe), data, CONFIG, tmp_path, progress=False)
    assert tracker.finished


@pytest.mark.parametrize("call", [None, 1, 3])
def test_searching(lived_in: StableDiffusionPipeline, live_accelerator: Accelerator, call: int | None) -> None:
    calls = 0

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return redness(images, prompts)

    preset = SearchConfig.preset(
        "masks", num_inference_steps=2, iterations=2, guidance_scale=4.0, gradient_checkpointing=True
    )
    with unchanged(lived_in), contextlib.nullcontext() if call is None else pytest.raises(KeyboardInterrupt):
        mu.search(lived_in, ["a b"], reward, preset, progress=False)


def test_searching_switches_checkpointing_on_for_itself_alone(pipe: StableDiffusionPipeline) -> None:
    preset = SearchConfig.preset(
        "masks", num_inference_steps=2, iterations=1, guidance_scale=4.0, gradient_checkpointing=True
    )
    with unchanged(pipe):
        mu.search(pipe, ["a b"], redness, preset, progress=False)


def test_syngen(lived_in: StableDiffusionPipeline) -> None:
    lived_in.unet.disable_lora() if hasattr(lived_in.unet, "disable_lora") else None
    with unchanged(lived_in):
        syngen(lived_in, ["a red circle"], [0], phrases=shapes_phrases, num_inference_steps=2)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_generating(
    lived_in: StableDiffusionPipeline, live_accelerator: Accelerator, error: type[BaseException] | None
) -> None:
    def stop(share: float) -> None:
        if error is not None:
            raise error

    with unchanged(lived_in), contextlib.nullcontext() if error is None else pytest.raises(error):
        generate(lived_in, ["a b"], num_inference_steps=2, progress=False, on_step=stop)
    del lived_in._progress_bar_config
    generate(lived_in, ["a b"], num_inference_steps=1, progress=False)
    assert not hasattr(lived_in, "_progress_bar_config")


def test_evaluating(lived_in: StableDiffusionPipeline, live_accelerator: Accelerator, tmp_path: Path) -> None:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_info()
        library.utils.logging.enable_progress_bar()
    prompts = [{"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red circle"}]
    options: dict[str, Any] = {
        "detector": "judge",
        "num_inference_steps": 2,
        "images_per_prompt": 1,
        "progress": False,
    }
    try:
        with unchanged(lived_in):
            mu.evaluate(lived_in, "geneval", prompts=prompts, masker=new_masker(lived_in), **options)
        sides: dict[str, Callable[..., Tensor]] = {"broken": interrupted}
        with unchanged(lived_in), pytest.raises(KeyboardInterrupt):
            mu.evaluate(lived_in, "geneval", prompts=prompts, sides=sides, **options)
    finally:
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_warning()


def interrupted(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    raise KeyboardInterrupt


def test_only_the_generators_of_the_run_are_seeded(
    pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("the generators of all GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    pytest.importorskip("peft")
    for method in METHODS:
        built = build_method(method, pipe, mu.LowRankMaskerConfig(), rank=2, dropout=0.1, seed=4)
        with unchanged(pipe, trains_all=True):
            mu.train(pipe, built, latents(pipe), CONFIG, tmp_path / method, progress=False)


class FakeGenerators:
    """A kind of device with one generator per index."""

    def __init__(self) -> None:
        self.default_generators = [torch.Generator().manual_seed(i) for i in range(2)]

    def current_device(self) -> int:
        return 1

    def _index(self, device: torch.device) -> int:
        return self.current_device() if device.index is None else device.index

    def get_rng_state(self, device: torch.device) -> Tensor:
        return self.default_generators[self._index(device)].get_state()

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.default_generators[self._index(device)].set_state(state)


@pytest.mark.parametrize(("device", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_generators_of_a_device_are_kept(monkeypatch: pytest.MonkeyPatch, device: str, index: int) -> None:
    fake = FakeGenerators()
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    states = [torch.get_rng_state(), *(generator.get_state() for generator in fake.default_generators)]
    with contextlib.suppress(KeyboardInterrupt), kept_generators(torch.device(device)) as seed:
        seed(7)
        assert torch.initial_seed() == 7
        assert [g.initial_seed() for g in fake.default_generators] == [7 if i == index else i for i in range(2)]
        torch.rand(3)
        raise KeyboardInterrupt
    after = [torch.get_rng_state(), *(generator.get_state() for generator in fake.default_generators)]
    assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True))


def test_generators_of_a_device_without_indices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    fake = SimpleNamespace(
        get_rng_state=generator.get_state, set_rng_state=generator.set_state, manual_seed=generator.manual_seed
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    state = generator.get_state()
    with kept_generators(torch.device("mps")) as seed:
        seed(7)
        assert generator.initial_seed() == 7
    assert torch.equal(generator.get_state(), state)
