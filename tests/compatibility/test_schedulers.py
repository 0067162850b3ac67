"""Every scheduler with constant masks and masks by timestep: as if the weights were multiplied by hand before each call."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

import maskunet as mu
from maskunet.maskers import FixedMasks, MaskSchedule
from maskunet.targets import describe
from tiny_pipelines import Builder, generate
from tiny_tokenizer import make_tokenizer

#: Class and settings by name, as docs/compatibility.md lists them.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDIM, trailing spacing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "DDIM, v-prediction, zero SNR": (
        "DDIMScheduler",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "DDPM": ("DDPMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++, Karras sigmas": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver++, single step": ("DPMSolverSinglestepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}
MASKS = ("constant", "by timestep")

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of diffusers' own schedulers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def build_masker(pipe: Any, kind: str, *, keep_all: bool) -> Any:
    network, generator = describe(pipe.unet), torch.Generator().manual_seed(7)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape) if keep_all else (torch.rand(shape, generator=generator) < 0.7).float()

    if kind == "constant":
        return FixedMasks({layer.name: drawn(layer.shape) for layer in network.layers})
    schedule = MaskSchedule(network, [951.0, 501.0, 51.0])
    for index in range(3):
        schedule.set(index, {layer.name: drawn((1, *layer.shape)) for layer in network.layers})
    return schedule


def multiply_by_hand(unet: Any, masker: Any, kind: str) -> None:
    """Write the masks of every call's timestep into the weights, before the call."""
    layers = {layer.name: unet.get_submodule(layer.name) for layer in masker.network.layers}
    plain = {name: module.weight.detach().clone() for name, module in layers.items()}

    def write(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).reshape(-1)[0])
        for name, layer in layers.items():
            mask = masker[name] if kind == "constant" else masker.get(masker.nearest(timestep), name)
            layer.weight.data = plain[name] * mask.reshape(plain[name].shape)

    unet.register_forward_pre_hook(write, with_kwargs=True)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler(name: str, tokenizer: CLIPTokenizer) -> None:
    case = Builder(tokenizer).cases()["text to image"]
    pipe = case.build()
    class_name, options = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **options)
    base = generate(case, pipe)
    assert torch.isfinite(base).all()
    for kind in MASKS:
        mu.attach(pipe, build_masker(pipe, kind, keep_all=True))
        assert torch.equal(generate(case, pipe), base)
        masker = build_masker(pipe, kind, keep_all=False)
        mu.detach(pipe)
        by_hand = copy.deepcopy(pipe)
        multiply_by_hand(by_hand.unet, masker, kind)
        mu.attach(pipe, masker)
        masked = generate(case, pipe)
        assert not torch.equal(masked, base)
        torch.testing.assert_close(masked, generate(case, by_hand), atol=1e-4, rtol=1e-4)
        mu.detach(pipe)
        assert torch.equal(generate(case, pipe), base)
