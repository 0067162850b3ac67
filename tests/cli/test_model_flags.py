"""Flags of every command with a model: `--unet`, `--variant`, `--revision` and `--config`."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from maskunet.cli.main import app
from original_layout import original_checkpoint
from tiny_pipelines import unet as build_unet

Run = Callable[..., tuple[int, str, str]]
FLAGS = {"--unet", "--variant", "--revision", "--config"}


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", {flag for parameter in command.params for flag in parameter.opts}


def test_every_command_with_a_model_has_them() -> None:
    for name, flags in commands():
        takes_a_model = "--model" in flags or name == "info"
        assert (flags & FLAGS) == (FLAGS if takes_a_model else set()), name


def test_a_fine_tuned_unet_over_its_base(run: Run, pipe: StableDiffusionPipeline, model: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", model, "--prompt", "a b", "--steps", 2, "--device", "cpu"]
    assert run(*words, "--output", "base")[0] == 0
    unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        unet.conv_out.bias.add_(1)
    unet.save_pretrained(tmp_path / "run" / "unet", variant="fp16")
    assert run(*words, "--output", "tuned", "--unet", "run")[0] == 0
    assert (tmp_path / "base/00000.png").read_bytes() != (tmp_path / "tuned/00000.png").read_bytes()
    assert json.loads((tmp_path / "tuned/00000.json").read_text())["model"] == f"{model}, unet run"
    # Images of another U-Net are not taken for finished.
    code, _, err = run(*words, "--output", "tuned")
    assert code == 2
    assert "model differ" in err


def test_a_variant_and_a_single_file(run: Run, pipe: StableDiffusionPipeline, model: Path, tmp_path: Path) -> None:
    save_file(original_checkpoint(pipe), tmp_path / "x.safetensors")
    words = ["generate", "--prompt", "a b", "--steps", 2, "--device", "cpu"]
    for file in model.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    models = (
        ["--model", model],
        ["--model", model, "--variant", "fp16"],
        ["--model", "x.safetensors", "--config", model],
    )
    for number, source in enumerate(models):
        code, _, err = run(*words, *source, "--output", f"images-{number}")
        assert code == 0, err
    images = [(tmp_path / f"images-{number}/00000.png").read_bytes() for number in range(3)]
    assert images[0] == images[1] == images[2]


def test_the_bundled_model_keeps_its_defaults(run: Run, tmp_path: Path) -> None:
    from maskunet.pretrained import bundled_path

    code, _, err = run("generate", "--prompt", "a red circle", "--steps", 2, "--unet", bundled_path("shapes"))
    assert code == 0, err
    record = json.loads((tmp_path / "images/00000.json").read_text())
    assert run("generate", "--prompt", "a red circle", "--steps", 2, "--output", "plain")[0] == 0
    assert record["guidance_scale"] == json.loads((tmp_path / "plain/00000.json").read_text())["guidance_scale"]
    assert (tmp_path / "images/00000.png").read_bytes() == (tmp_path / "plain/00000.png").read_bytes()


@pytest.mark.parametrize("command", ["generate", "search", "train"])
def test_nine_channels_are_refused_where_images_come_from_text(
    run: Run, pipe: StableDiffusionPipeline, tmp_path: Path, command: str
) -> None:
    pipe.register_modules(unet=build_unet(in_channels=9))
    pipe.save_pretrained(tmp_path / "model")
    others = {
        "generate": ["--prompt", "a", "--steps", 2],
        "search": ["--prompt", "a", "--steps", 2, "--reward", "shapes-matching"],
        "train": ["--dataset", "shapes", "--max-train-samples", 4, "--validation-samples", 2, "--max-train-steps", 1],
    }
    code, _, err = run(command, "--model", "model", *others[command], "--output", "out", "--device", "cpu")
    assert code == 2
    assert "9 " in err
    assert "channels" in err
    assert "inpainting" in err


def test_info_counts_an_inpainting_model(run: Run, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipe.register_modules(unet=build_unet(in_channels=9))
    pipe.save_pretrained(tmp_path / "model")
    code, out, err = run("info", "model")
    assert code == 0, err
    assert "StableDiffusionInpaintPipeline" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluate", "--images", ".", "--features", "shapes", "--unet", "x"],
            "expected --model with --unet, got none",
        ),
        (["ui", "--model", "a/b", "--model", "c/d", "--variant", "x"], "expected one --model with --variant, got 2"),
        (
            ["generate", "--prompt", "a", "--revision", "v1"],
            r"expected revision \(--revision\) with a hub id as model",
        ),
        (["info", "shapes", "--config", "x"], r"expected config \(--config\) with a \.safetensors file as model"),
    ],
)
def test_flags_that_do_not_fit(run: Run, words: list[str], message: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert re.search(message, err), err
