"""The scripts of examples/ run on the bundled model and write what they promise."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
Script = Callable[..., str]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Script:
    """Run an example in an empty folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), np.float32) / 255


def redness(path: Path) -> float:
    red, green, blue = np.moveaxis(pixels(path), -1, 0)
    return float((red - (green + blue) / 2).mean())


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tested] == []


def test_generate_writes_both_sides(run_example: Script, tmp_path: Path) -> None:
    out = run_example("generate.py", "--prompt", "a red circle", "--steps", 3, "--output", "images")
    base, masked = (pixels(tmp_path / "images" / side / "00000.png") for side in ("base", "masked"))
    assert base.shape == masked.shape == (64, 64, 3)
    assert 0 < np.abs(base - masked).mean() < 0.1  # the same composition, other details
    assert "kept weights: 9" in out


def test_training_on_a_folder_leaves_a_masker(run_example: Script, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for i, colour in enumerate(["red", "green", "blue", "yellow"] * 5):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"a {colour} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    out = run_example("train_on_a_folder.py", "--images", folder, "--steps", 2, "--batch-size", 2, "--output", "run")
    assert "density 1.0000" in out  # two steps from logit 1 reach no threshold
    masker = tmp_path / "run" / "run" / "masker"
    assert {path.name for path in masker.iterdir()} == {"README.md", "config.json", "masker.safetensors"}


def test_the_search_finds_redder_images(run_example: Script, tmp_path: Path) -> None:
    out = run_example("search_with_my_reward.py", "--prompt", "a circle", "--preset", "fast", "--steps", 5)
    assert "redness" in out
    assert redness(tmp_path / "found-red" / "00000.png") > redness(tmp_path / "found-red" / "base" / "00000.png")
    assert (tmp_path / "found-red" / "masks" / "00000" / "masker.safetensors").is_file()
    assert (tmp_path / "found-red" / "again" / "00000.png").is_file()
