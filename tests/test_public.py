"""The public face: exactly the promised names, and errors of one line for arguments of the wrong type."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import maskunet as mu

FUNCTIONS = {"attach", "detach", "disabled", "record", "merge", "unmerge", "load", "train", "search", "evaluate"}
CLASSES = {
    "LowRankMasker", "LowRankMaskerConfig", "MaskGenerator", "MaskGeneratorConfig", "TrainConfig", "SearchConfig",
    "MaskUNetError",
}  # fmt: skip
MODULES = {"maskers", "rewards", "data", "zoo", "sampling", "evaluation", "analysis"}


def test_the_public_names_are_exactly_these() -> None:
    assert set(mu.__all__) == set(dir(mu)) == FUNCTIONS | CLASSES | MODULES | {"__version__"}
    assert len(mu.__all__) == len(set(mu.__all__))


def test_names_stay_what_they_are_after_every_module_is_imported() -> None:
    for module in pkgutil.walk_packages(mu.__path__, "maskunet."):
        if not module.name.endswith(("__main__", "triton_kernels")):  # the one needs Triton
            importlib.import_module(module.name)
    assert all(isinstance(getattr(mu, name), types.FunctionType) for name in FUNCTIONS)
    assert all(isinstance(getattr(mu, name), type) for name in CLASSES)
    assert all(isinstance(getattr(mu, name), types.ModuleType) for name in MODULES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'maskunet' has no attribute 'MaskTable'"):
        mu.MaskTable  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, maskunet; maskunet.MaskUNetError; print('torch' in sys.modules, maskunet.__version__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == f"False {mu.__version__}\n"


def test_every_public_function_documents_its_arguments() -> None:
    for name in FUNCTIONS:
        function = getattr(mu, name)
        code = function.__wrapped__.__code__ if hasattr(function, "__wrapped__") else function.__code__
        for argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            assert f"{argument}:" in (function.__doc__ or ""), f"{name}({argument})"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: mu.attach(pipe, 3), "a hub id or a bundled name to attach, got int"),
        (lambda pipe: mu.attach(pipe, None), "a hub id or a bundled name to attach, got NoneType"),
        (
            lambda pipe: mu.attach(pipe, mu.LowRankMasker),
            "a hub id or a bundled name to attach, got the class LowRankMasker",
        ),
        (lambda pipe: mu.attach(pipe, "no-such-masker"), "got 'no-such-masker', which does not exist"),
        (
            lambda pipe: mu.attach(pipe, mu.LowRankMasker.for_unet(pipe), seed="a"),
            "expected seed to be an integer or None, got 'a'",
        ),
        (
            lambda pipe: mu.attach(pipe, mu.LowRankMasker.for_unet(pipe), seed=True),
            "expected seed to be an integer or None, got True",
        ),
        (
            lambda pipe: mu.attach(pipe, mu.LowRankMasker.for_unet(pipe), noise=3),
            "expected noise to be a mapping .* got int",
        ),
        (lambda pipe: mu.attach(3, "shapes-masker"), "expected a Stable Diffusion pipeline or its U-Net .* got int"),
        (lambda pipe: mu.detach("shapes"), "expected a Stable Diffusion pipeline or its U-Net .* got str"),
        (
            lambda pipe: mu.disabled(None).__enter__(),
            "expected a Stable Diffusion pipeline or its U-Net .* got NoneType",
        ),
        (lambda pipe: mu.record(pipe).__enter__(), "expected a model with a masker, none is attached"),
        (lambda pipe: mu.load(3), "expected a masker's folder, a hub id or a bundled name, got int 3"),
        (lambda pipe: mu.load("shapes-masker", 3), "expected a Stable Diffusion pipeline or its U-Net .* got int"),
        (lambda pipe: mu.LowRankMasker.for_unet(pipe, 3), "expected a LowRankMaskerConfig .* got 3"),
        (lambda pipe: mu.LowRankMasker.for_unet(pipe.vae), "expected a Stable Diffusion pipeline or its U-Net"),
        (lambda pipe: mu.LowRankMaskerConfig(rank="4"), "expected rank to be an integer >= 2 and <= 65536, got '4'"),
        (lambda pipe: mu.MaskGeneratorConfig(targets=4), "expected targets to be a preset"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    call: Callable[[Any], Any], message: str, pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(mu.MaskUNetError, match=message) as caught:
        call(pipe)
    assert "\n" not in str(caught.value)


def test_attaching_a_folder(
    pipe: StableDiffusionPipeline, draw_latents: Callable[..., Tensor], tmp_path: Path
) -> None:
    masker = mu.LowRankMasker.for_unet(pipe, mu.LowRankMaskerConfig(rank=3), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    base = draw_latents(pipe, ["ab"], [0])
    mu.attach(pipe, masker)
    masked = draw_latents(pipe, ["ab"], [0])
    mu.detach(pipe)
    mu.attach(pipe, masker.save_pretrained(tmp_path))
    assert torch.equal(draw_latents(pipe, ["ab"], [0]), masked)
    assert not torch.equal(masked, base)


def test_the_bundled_masker_is_for_the_bundled_model(pipe: StableDiffusionPipeline) -> None:
    bundled = mu.zoo.load("shapes")
    attachment = mu.attach(bundled, "shapes-masker")
    assert isinstance(attachment.masker, mu.MaskGenerator)
    assert isinstance(mu.load("shapes-masker", bundled), mu.MaskGenerator)
    with pytest.raises(mu.MaskUNetError, match="the masker was made for another network: up_blocks") as caught:
        mu.attach(pipe, "shapes-masker")
    assert "\n" not in str(caught.value)
