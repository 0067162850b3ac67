"""`maskunet analyze` in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from maskunet.maskers import RandomMasks

Run = Callable[..., tuple[int, str, str]]


def test_analyze_writes_plot_and_data(run: Run, model: Path, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    masker = RandomMasks.for_unet(pipe.unet, density=0.9).save_pretrained(tmp_path / "masker")
    words = ["--model", model, "--masker", masker, "--prompt", "a b", "--steps", 2, "--device", "cpu", "--count", 2]
    code, out, err = run("analyze", "density", *words, "--output", "out")
    assert code == 0, err
    assert "switched off on average" in out
    assert json.loads((tmp_path / "out" / "density.json").read_text())["settings"]["guidance_scale"] == 7.5
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".csv", ".json", ".png"]
    code, _, err = run("analyze", "density", *words, "--output", "vector", "--svg")
    assert code == 0, err
    assert (tmp_path / "vector" / "density.svg").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("density", "--rate", 0.1), "no such option: --rate"),
        (("random", "--rate", 2), "expected drop ratios between 0 and 1"),
        (("masks", "--run", "x"), "no such option: --run"),
        (("density",), "(--masker)"),
        (("masks", "--masker", "shapes-masker", "--layer", "to_q"), "such as up_blocks."),
        (("density", "--masker", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(run: Run, words: tuple[object, ...], message: str) -> None:
    code, _, err = run("analyze", *words, "--device", "cpu")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
