"""`maskunet export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

import maskunet as mu

Run = Callable[..., tuple[int, str, str]]


def save_masker(pipe: Any, folder: Path, **conditions: bool) -> Path:
    masker = mu.LowRankMasker.for_unet(pipe, mu.LowRankMaskerConfig(rank=4, **conditions))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return Path(masker.save_pretrained(folder))


@pytest.fixture
def constant(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    return save_masker(pipe, tmp_path / "constant", use_timestep=False, use_sample=False)


@pytest.fixture
def conditional(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    return save_masker(pipe, tmp_path / "conditional")


def image(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
    return pipe("a b", generator=torch.Generator().manual_seed(0), **options).images


def test_a_masker_that_depends_on_nothing(run: Run, model: Path, constant: Path, tmp_path: Path) -> None:
    code, out, err = run("export", "--model", model, "--masker", constant, "--output", "out")
    assert code == 0, err
    assert "none: the masks depend on nothing" in out
    assert "for diffusers" in out
    base = DiffusionPipeline.from_pretrained(model)
    mu.attach(base, constant)
    expected = image(base)
    exported = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert np.array_equal(image(exported), expected)
    assert type(exported.scheduler) is type(base.scheduler)
    code, out, err = run("export", "--model", model, "--masker", constant, "--output", "out")
    assert code == 2
    assert "expected a new or empty folder to export to" in err


def test_one_file_in_half_precision_on_a_cpu(run: Run, model: Path, constant: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "export", "--model", model, "--masker", constant, "--output", "u.safetensors", "--dtype", "float16"
    )
    assert code == 0, err
    assert "diffusers and ComfyUI" in out
    tensors = load_file(tmp_path / "u.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_a_conditional_masker_needs_a_run_and_says_what_it_loses(
    run: Run, model: Path, conditional: Path, tmp_path: Path
) -> None:
    words = ("export", "--model", model, "--masker", conditional, "--output", "out")
    code, _, err = run(*words)
    assert code == 2
    assert "expected --prompt or --prompts-file, since the masks depend on the timestep and the sample" in err
    assert not (tmp_path / "out").exists()
    (tmp_path / "prompts.txt").write_text("a b\nc d\n")
    code, out, err = run(*words, "--prompts-file", "prompts.txt", "--steps", 2, "--scheduler", "euler")
    assert code == 0, err
    loss = float(next(line for line in out.splitlines() if line.startswith("loss")).split()[1])
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    merged = mu.merge(pipe, conditional, prompts=["a b", "c d"], num_inference_steps=2)
    assert loss == pytest.approx(merged.disagreement, abs=1e-4)
    assert loss > 0
    exported = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(exported.scheduler).__name__ == "DDIMScheduler"  # the model's own
    state = exported.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in pipe.unet.state_dict().items())


def test_nothing_is_written_for_a_pickle(run: Run, model: Path, constant: Path, tmp_path: Path) -> None:
    code, _, err = run("export", "--model", model, "--masker", constant, "--output", "out.ckpt")
    assert code == 2
    assert "expected --output to be a folder or a .safetensors file" in err
    assert not (tmp_path / "out.ckpt").exists()


def test_info_and_the_card_say_that_masks_can_be_merged(run: Run, constant: Path, conditional: Path) -> None:
    out = run("info", constant)[1]
    assert "conditions     none; maskunet export merges its masks exactly" in out
    assert "density        0." in out
    assert "conditions     timestep, sample" in run("info", conditional)[1]
    assert "`maskunet export` can also merge them" in (constant / "README.md").read_text()
    assert "export" not in (conditional / "README.md").read_text()


def test_training_a_masker_that_depends_on_nothing(run: Run, tmp_path: Path) -> None:
    words = "train --model shapes --dataset shapes --max-train-samples 4 --max-train-steps 2 --train-batch-size 2"
    more = "--validation-samples 2 --validation-batch-size 2 --no-timestep --no-sample --masker-rank 4 --device cpu"
    code, _, err = run(*words.split(), *more.split(), "--output", "run")
    assert code == 0, err
    masker = mu.load(tmp_path / "run" / "masker")
    assert masker.conditions == ()
    assert masker.config.rank == 4
