"""Every kind of pipeline with every kind of masker: all-ones is the base, each row gets its own masks, detach is exact.

The table of docs/compatibility.md is made from the names that are used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

import maskunet as mu
from maskunet.maskers import ComposedMasker, FixedMasks, LowRankMasker, Masker, MaskGenerator, MaskSchedule
from maskunet.network import Network
from maskunet.targets import describe
from tiny_pipelines import PROMPTS, Builder, Case, Row, generate
from tiny_tokenizer import make_tokenizer

PIPELINES = (
    "text to image", "image to image", "inpainting, 4 channels", "inpainting, 9 channels", "ControlNet",
    "ControlNet, guess mode", "T2I-Adapter", "IP-Adapter", "InstructPix2Pix", "PAG", "PAG without guidance",
    "no guidance", "LCM", "SDXL", "SDXL refiner", "AnimateDiff", "Text2Video-Zero", "panorama",
)  # fmt: skip
CONDITIONAL = ("low-rank", "paper's")
MASKERS = ("low-rank", "paper's", "schedule", "schedule, conditional half", "fixed", "composed")
COMPOSED = {"all": "fixed", "half": "schedule, conditional half"}

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of diffusers' own pipelines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def case(request: pytest.FixtureRequest, tokenizer: CLIPTokenizer) -> Case:
    return Builder(tokenizer).cases()[request.param]


def build_masker(kind: str, pipe: Any, prompts: int, *, keep_all: bool) -> Masker:
    """A masker whose masks differ by prompt, timestep or features; or one that keeps every weight."""
    network = describe(pipe.unet)
    generator = torch.Generator().manual_seed(7)
    timesteps = [981.0, 501.0, 1.0]
    if kind in CONDITIONAL:
        masker_class = LowRankMasker if kind == "low-rank" else MaskGenerator
        masker = masker_class.for_unet(pipe.unet, seed=3)
        if not keep_all:
            with torch.no_grad():
                for name, p in masker.named_parameters():
                    p.add_(0.6 * torch.randn(p.shape, generator=generator))
                    if name.endswith(("in_bias", "out_bias")):
                        p.sub_(0.5)
        return masker

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape) if keep_all else (torch.rand(shape, generator=generator) < 0.7).float()

    if kind == "composed":  # of two whose masks differ by prompt, and that mask different rows
        return ComposedMasker(
            {name: build_masker(k, pipe, prompts, keep_all=keep_all) for name, k in COMPOSED.items()}
        )
    if kind == "fixed":
        return FixedMasks({layer.name: drawn((prompts, *layer.shape)) for layer in network.layers})
    half = "conditional" if kind.endswith("half") else None
    schedule = MaskSchedule(network, timesteps, samples=prompts, guided_half=half)
    for i in range(len(timesteps)):
        schedule.set(i, {layer.name: drawn((prompts, *layer.shape)) for layer in network.layers})
    return schedule


class LayerCalls:
    """Inputs and outputs of the masked layers, call by call of the U-Net.

    Args:
        pipe: the pipeline.
        network: the masked layers.
    """

    def __init__(self, pipe: Any, network: Network) -> None:
        self.calls: list[tuple[float, dict[str, tuple[Tensor, Tensor]]]] = []
        self._handles = [pipe.unet.register_forward_pre_hook(self._start, with_kwargs=True)]
        for layer in network.layers:
            module = pipe.unet.get_submodule(layer.name)
            self._handles.append(module.register_forward_hook(self._note(layer.name)))

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.calls.append((float(torch.as_tensor(timestep).reshape(-1)[0]), {}))

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.calls[-1][1][name] = (args[0].clone(), output.clone())

        return note

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def layer_calls() -> Iterator[Callable[..., LayerCalls]]:
    made: list[LayerCalls] = []

    def build(pipe: Any, network: Network) -> LayerCalls:
        made.append(LayerCalls(pipe, network))
        return made[-1]

    yield build
    for calls in made:
        calls.remove()


def expected_mask(
    kind: str, masker: Any, name: str, row: Row, timestep: float, recorded: Tensor, number: int
) -> Tensor:
    """The mask of one row of a batch, from what the masker was built of and not from how it was attached."""
    part, prompt = row
    if kind == "composed":
        masks = [
            expected_mask(k, masker.maskers[n], name, row, timestep, recorded, number) for n, k in COMPOSED.items()
        ]
        return masks[0] * masks[1]
    if kind == "fixed":
        return masker[name][prompt]
    if kind == "schedule":
        return masker.get(masker.nearest(timestep), name)[prompt]
    if kind == "schedule, conditional half":
        own = masker.get(masker.nearest(timestep), name)[prompt]
        return own if part in ("conditional", "perturbed") else torch.ones_like(own)
    return recorded[number]


@pytest.mark.parametrize("kind", MASKERS)
@pytest.mark.parametrize("case", PIPELINES, indirect=True)
def test_a_cell(case: Case, kind: str, layer_calls: Callable[..., LayerCalls]) -> None:
    pipe = case.build()
    base = generate(case, pipe)

    mu.attach(pipe, build_masker(kind, pipe, case.prompts, keep_all=True))
    assert torch.equal(generate(case, pipe), base), "all-ones differs from the base"

    masker = build_masker(kind, pipe, case.prompts, keep_all=False)
    mu.attach(pipe, masker)
    with mu.disabled(pipe):
        assert torch.equal(generate(case, pipe), base), "disabled differs from the base"
    calls = layer_calls(pipe, masker.network)
    masked = generate(case, pipe)
    seen = list(calls.calls)
    calls.remove()
    recorded_masks: list[dict[str, Tensor]] = [{} for _ in seen]
    if kind in CONDITIONAL:  # their masks follow from features, so they are recorded
        with mu.record(pipe) as trace:
            again = generate(case, pipe)
        torch.testing.assert_close(again, masked, atol=1e-4, rtol=1e-4)
        recorded_masks = [call.masks for call in trace.calls]
    for (timestep, layers), recorded in zip(seen, recorded_masks, strict=True):
        for name, (x, output) in layers.items():
            module = pipe.unet.get_submodule(name)
            rows = case.rows(len(x))
            for number, row in enumerate(rows):
                mask = expected_mask(kind, masker, name, row, timestep, recorded.get(name), number)
                by_hand = F.linear(x[number], module.weight * mask, module.bias)
                torch.testing.assert_close(output[number], by_hand, atol=1e-5, rtol=1e-4)
    assert not torch.equal(masked, base)

    mu.detach(pipe)
    assert torch.equal(generate(case, pipe), base), "detached differs from the base"
    assert not any("forward" in module.__dict__ for module in pipe.unet.modules() if isinstance(module, nn.Linear))


def test_prompts_differ() -> None:
    """Rows of different prompts can only be told apart if there are several."""
    assert len(set(PROMPTS)) == 2
