"""`maskunet info`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import maskunet as mu
from maskunet.maskers import ComposedMasker, FixedMasks, RandomMasks

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def masker(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    generator = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=-0.3), seed=0)
    return Path(generator.save_pretrained(tmp_path / "masker"))


def test_info_of_masker_and_model(run: Run, model: Path, masker: Path) -> None:
    code, out, err = run("info", masker)
    assert code == 0, err
    count = sum(v.numel() for v in load_file(masker / "masker.safetensors").values())
    assert f"parameters     {count:,}" in out
    assert "MaskGenerator" in out
    assert "up_blocks.1" in out
    code, out, err = run("info", model, "--targets", "all")
    assert code == 0, err
    assert "UNet2DConditionModel" in out
    assert "mid_block" in out
    assert run("info", model, "--targets", "nothing")[0] == 2
    assert run("info", "nowhere")[0] == 2


def test_info_of_fixed_and_random_masks(run: Run, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    half = torch.arange(32 * 32).reshape(32, 32) % 2
    FixedMasks({name: half}).save_pretrained(tmp_path / "fixed")
    assert "density        0.5000" in run("info", tmp_path / "fixed")[1]
    RandomMasks.for_unet(pipe.unet, density=0.9).save_pretrained(tmp_path / "random")
    assert "0.9 (drawn)" in run("info", tmp_path / "random")[1]


def test_info_of_a_composition(run: Run, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    half = FixedMasks({name: torch.arange(32 * 32).reshape(32, 32) % 2})
    parts = {"style": half, "detail": RandomMasks.for_unet(pipe.unet, density=0.9)}
    ComposedMasker(parts, "majority").save_pretrained(tmp_path / "both")
    code, out, err = run("info", tmp_path / "both")
    assert code == 0, err
    assert "masker         ComposedMasker\n" in out
    assert "compose        majority\n" in out
    assert "style:\n  masker         FixedMasks\n" in out
    assert "  density        0.5000\n" in out
    assert "detail:\n  masker         RandomMasks\n" in out


def test_bundled_names(run: Run) -> None:
    code, out, err = run("info", "shapes-masker")
    assert code == 0, err
    assert "MaskGenerator" in out
