"""The command line, run in process as a user would: results, and one-line errors with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import maskunet as mu
from maskunet.maskers import FixedMasks, RandomMasks

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def masker(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    generator = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=-0.3), seed=0)
    return Path(generator.save_pretrained(tmp_path / "masker"))


def test_generate_writes_pictures_and_settings(run: Run, model: Path, masker: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("d e\n\n f g \n")
    words = ["generate", "--model", model, "--prompt", "a b", "--prompts-file", "prompts.txt", "--steps", 2]
    code, out, err = run(
        *words, "--masker", masker, "--compare-base", "--seed", 4, "--scheduler", "euler", "--device", "cpu"
    )
    assert code == 0, err
    assert "3 pictures" in out
    files = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert files == [f"0000{i}.{kind}" for i in range(3) for kind in ("json", "png")]
    settings = json.loads((tmp_path / "pictures" / "00002.json").read_text())
    assert settings["prompt"] == "f g"
    assert settings["seed"] == 6
    assert settings["scheduler"] == "EulerDiscreteScheduler"
    with Image.open(tmp_path / "pictures" / "00000.png") as image:
        assert image.size == (36, 16)


def test_generate_with_masks_that_are_held(
    run: Run, model: Path, pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    masker = mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(rank=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    masker.save_pretrained(tmp_path / "masker")
    words = ["generate", "--model", model, "--masker", "masker", "--prompt", "a b", "--steps", 4, "--device", "cpu"]
    pictures = {}
    for name, more in {
        "anew": [],
        "every": ["--mask-every", 4],
        "never moved": ["--mask-tolerance", 1e6],
        "moved": ["--mask-tolerance", 0],
    }.items():
        code, _, err = run(*words, *more, "--output", name)
        assert code == 0, err
        pictures[name] = np.asarray(Image.open(tmp_path / name / "00000.png"), np.int16)
    assert json.loads((tmp_path / "every" / "00000.json").read_text())["mask_every"] == 4
    assert abs(pictures["anew"] - pictures["every"]).max() > 1
    assert abs(pictures["anew"] - pictures["moved"]).max() <= 1
    assert abs(pictures["every"] - pictures["never moved"]).max() <= 1
    code, _, err = run("generate", "--model", model, "--prompt", "a b", "--mask-every", 2)
    assert code == 2
    assert "expected --masker with --mask-every" in err


def test_generate_with_syngen(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "--syngen", "--steps", 2, "--guidance-scale", 4, "--device", "cpu", "--batch-size", 1]
    captions = ["--prompt", "a red circle and a blue star", "--prompt", "a ring"]
    code, _, err = run(*words, *captions, "--compare-base", "--syngen-scale", 50)
    assert code == 0, err
    assert json.loads((tmp_path / "pictures" / "00001.json").read_text())["syngen_scale"] == 50
    for name, differs in (("00000", True), ("00001", False)):
        picture = np.asarray(Image.open(tmp_path / "pictures" / f"{name}.png"), np.int16)
        assert (abs(picture[:, :64] - picture[:, -64:]).max() > 2) == differs
    monkeypatch.setitem(sys.modules, "spacy", None)
    code, _, err = run(*words, "--model", model, "--prompt", "a b")
    assert code == 2
    assert "maskunet[syngen]" in err


def test_generate_repeats(run: Run, model: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert (
            run("generate", "--model", model, "--prompt", "a", "--steps", 2, "--output", folder, "--device", "cpu")[0]
            == 0
        )
    one, two = (np.asarray(Image.open(tmp_path / name / "00000.png"), np.int16) for name in ("one", "two"))
    assert one.std() > 1
    # Once in dozens of runs the last bit of a sum differs, and a value on the border of two grey levels goes the other way.
    assert abs(one - two).max() <= 1
    assert (one != two).mean() < 0.01


ERRORS = [
    (["--model", "nowhere/at/all"], "which is not there"),
    (["--model", "empty"], "model_index.json"),
    (["--model", "weights.ckpt"], "pickled"),
    (["--model", "broken.safetensors"], "the file 'broken.safetensors' is not"),
    (["--model", "broken"], "the folder 'broken' is not"),
    (["--masker", "nowhere"], "masker's folder"),
    (["--masker", "empty"], "config.json"),
    (["--device", "cuda:7"], "expected a device of this machine"),
    (["--device", "toaster"], "expected a device of this machine"),
    (["--dtype", "float16", "--device", "cpu"], "float32 or bfloat16"),
    (["--dtype", "int8", "--device", "cpu"], "expected a dtype among"),
    (["--scheduler", "magic"], "expected a scheduler among"),
    (["--prompts-file", "blank.txt"], "it has none"),
    (["--prompts-file", "missing.txt"], "could not read"),
    (["--prompt", " "], "no empty one"),
    (["--compare-base"], "expected --masker"),
    (["--output", "weights.ckpt"], "expected a folder that can be written"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_mistakes_end_in_one_line(run: Run, model: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.ckpt").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    (tmp_path / "blank.txt").write_text("\n  \n")
    base = [] if "--model" in words else ["--model", model]
    prompt = [] if {"--prompt", "--prompts-file"} & set(words) else ["--prompt", "a"]
    before = {p for p in tmp_path.rglob("*") if model not in p.parents}
    code, out, err = run("generate", *base, *prompt, "--steps", 1, *words)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err + out
    assert {p for p in tmp_path.rglob("*") if model not in p.parents} == before


def test_usage_mistakes_exit_with_2(run: Run) -> None:
    assert run("generate", "--steps", "0", "--prompt", "a")[0] == 2
    assert run("generate", "--nonsense")[0] == 2
    assert run("paint")[0] == 2


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


def test_convert_the_authors_files(
    run: Run, pipe: StableDiffusionPipeline, authors_files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    generators, adapters, model = authors_files
    code, _, err = run("convert", generators, adapters, "--model", model, "--output", "converted")
    assert code == 0, err
    masker = mu.load(tmp_path / "converted", pipe)
    weights = torch.load(generators, weights_only=True)
    assert torch.equal(masker.blocks["up_blocks__1"].temb_proj.weight, weights["1.proj_temb.weight"])


def test_convert_refuses_what_is_not_a_state_dict(
    run: Run, authors_files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    generators, _, model = authors_files

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"x": Trap()}, tmp_path / "trap.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for bad in ("trap.pth", "list.pth", "missing.pth", "authors_model/model_index.json"):
        code, _, err = run("convert", generators, tmp_path / bad, "--model", model, "--output", "converted")
        assert code == 2
        assert "expected a state dict" in err
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "converted").exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['maskunet', '--help']\n"
        "from maskunet.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "generate" in out.stdout


def test_bundled_names(run: Run) -> None:
    code, out, err = run("info", "shapes-masker")
    assert code == 0, err
    assert "MaskGenerator" in out
