"""`maskunet convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu

Run = Callable[..., tuple[int, str, str]]


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
