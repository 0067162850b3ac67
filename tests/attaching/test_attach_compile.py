"""Masks and `torch.compile`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import maskunet as mu
from maskunet.maskers import RandomMasks
from maskunet.targets import describe

Unet = UNet2DConditionModel
#: Two layers: tracing more takes long and finds no more.
SOME = r"up_blocks\.0\.attentions\.1\..*attn1\.to_(q|out\.0)"
# Dynamo itself makes an instance of an autograd function where it traces one.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The compiler writes a structured trace of megabytes to any listener, and pytest is one.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    yield
    torch.compiler.reset()


@pytest.fixture
def unet() -> Unet:
    """The smallest U-Net that has a masked block; tracing a larger one takes long."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = Unet(
            sample_size=8,
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=24,
            block_out_channels=(16,),
            down_block_types=("DownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            mid_block_type=None,
            attention_head_dim=4,
        )
    return unet.eval().requires_grad_(False)


@pytest.fixture
def masker(unet: Unet) -> mu.MaskGenerator:
    masker = mu.MaskGenerator.for_unet(unet, mu.MaskGeneratorConfig(targets=SOME), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return masker


def close(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("first", "backend"), [("attach", "eager"), ("compile", "aot_eager")])
def test_compiled_before_or_after(
    unet: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor], first: str, backend: str
) -> None:
    base = predict(unet)
    mu.attach(unet, masker)
    masked = predict(unet)
    assert (masked - base).abs().max() > 1e-3
    if first == "compile":
        mu.detach(unet)
    compiled = torch.compile(unet, backend=backend)
    if first == "compile":
        close(predict(compiled), base)
        mu.attach(compiled, masker)
    close(predict(compiled), masked)
    with mu.disabled(compiled):
        close(predict(compiled), base)
    close(predict(compiled), masked)
    mu.detach(compiled)
    close(predict(compiled), base)


def test_maskers_switched_on_a_compiled_network(
    unet: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor]
) -> None:
    attachment = mu.attach(unet, {"a": masker, "b": RandomMasks.for_unet(unet, SOME, density=0.5, seed=1)})
    choices = (["a", "b"], "a")
    expected = []
    for names in choices:
        attachment.set_maskers(names)
        expected.append(predict(unet))
    unet.compile(backend="eager")
    for names, plain in zip(choices, expected, strict=True):
        attachment.set_maskers(names)
        close(predict(unet), plain)


def test_compiled_with_gumbel_noise_is_as_without(
    unet: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor]
) -> None:
    mu.attach(unet, masker, seed=3)
    expected = [predict(unet, timestep=timestep) for timestep in (900, 20)]
    assert not torch.equal(*expected)
    unet.compile(backend="eager")
    for timestep, plain in zip((900, 20), expected, strict=True):
        close(predict(unet, timestep=timestep), plain)


def test_attaching_to_the_network_inside_a_compiled_one(
    unet: Unet, masker: mu.MaskGenerator, predict: Callable[..., Tensor]
) -> None:
    compiled = torch.compile(unet, backend="eager")
    base = predict(compiled)
    mu.attach(unet, masker)
    masked = predict(unet)
    assert (masked - base).abs().max() > 1e-3
    close(predict(compiled), masked)
    mu.detach(unet)
    close(predict(compiled), base)


def test_random_masks_of_a_compiled_network_follow_the_timestep(unet: Unet, predict: Callable[..., Tensor]) -> None:
    mu.attach(unet, RandomMasks.for_unet(unet, SOME, density=0.5, seed=1))
    expected = [predict(unet, timestep=timestep) for timestep in (900, 20)]
    unet.compile(backend="eager")
    for timestep, plain in zip((900, 20), expected, strict=True):
        close(predict(unet, timestep=timestep), plain)


def test_masks_without_a_condition_attached_and_merged(unet: Unet, predict: Callable[..., Tensor]) -> None:
    config = mu.LowRankMaskerConfig(targets=SOME, rank=4, use_timestep=False, use_sample=False)
    masker = mu.LowRankMasker.for_unet(unet, config, seed=0)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    base = predict(unet)
    mu.attach(unet, masker)
    masked = predict(unet)
    assert (masked - base).abs().max() > 1e-3
    compiled = torch.compile(unet, backend="eager")
    close(predict(compiled), masked)
    mu.detach(compiled)
    close(predict(compiled), base)
    mu.merge(compiled, masker)
    close(predict(compiled), masked)
    mu.unmerge(compiled)
    close(predict(compiled), base)


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ("compile", "blocks"),
        ("attach", "transformer blocks"),
        ("compile", "transformer blocks"),
        ("compile", "layers"),
    ],
)
def test_parts_compiled_by_themselves(
    unet: Unet, predict: Callable[..., Tensor], kind: str, first: str, tmp_path: Path
) -> None:
    """Their names and masks are those of the plain network, and masks saved from one load into the other."""
    masker, network = RandomMasks.for_unet(unet, SOME, density=0.5, seed=1), describe(unet, SOME)
    base = predict(unet)
    mu.attach(unet, masker)
    masked = [predict(unet, timestep=timestep) for timestep in (900, 20)]
    assert not torch.equal(*masked)
    mu.detach(unet)

    def compile_parts() -> None:
        if kind == "blocks":
            unet.up_blocks[0] = torch.compile(unet.up_blocks[0], backend="eager")
        elif kind == "transformer blocks":
            unet.compile_repeated_blocks(backend="eager")
        else:
            attention = unet.up_blocks[0].attentions[1].transformer_blocks[0].attn1
            attention.to_q = torch.compile(attention.to_q, backend="eager")

    if first == "compile":
        compile_parts()
        close(predict(unet), base)
        assert describe(unet, SOME) == network
    for source in (masker, tmp_path):
        mu.attach(unet, source)
        if first == "attach" and source is masker:
            compile_parts()
        for timestep, plain in zip((900, 20), masked, strict=True):
            close(predict(unet, timestep=timestep), plain)
        RandomMasks.for_unet(unet, SOME, density=0.5, seed=1).save_pretrained(tmp_path)
    with mu.disabled(unet):
        close(predict(unet), base)
    mu.detach(unet)
    close(predict(unet), base)


def test_a_part_compiled_without_graph_breaks_says_why_not(unet: Unet, predict: Callable[..., Tensor]) -> None:
    mu.attach(unet, RandomMasks.for_unet(unet, SOME, density=0.5, seed=1))
    unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"compile the whole U-Net, or leave out fullgraph=True"):
        predict(unet)


def test_a_pipeline_of_a_compiled_unet_is_masked_and_saved_as_a_plain_one(
    unet: Unet, predict: Callable[..., Tensor], tmp_path: Path
) -> None:
    plain = copy.deepcopy(unet)
    pipe = SimpleNamespace(unet=torch.compile(unet, backend="eager"))
    masker = RandomMasks.for_unet(pipe, SOME, density=0.5, seed=1)
    assert masker.network == describe(plain, SOME)
    masker.save_pretrained(tmp_path)
    mu.attach(plain, tmp_path)
    mu.attach(pipe, tmp_path)
    close(predict(pipe.unet), predict(plain))
