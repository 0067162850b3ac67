"""Table 1 in kind, at a scale that shows the machinery and no result."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from benchmarks.studies import table1, world
from benchmarks.studies.report import student, table1_markdown
from benchmarks.studies.table1 import SIDES, Side, Table1Config, reproduce_table1

from maskunet.training import TrainConfig


def test_students_interval() -> None:
    assert student([1.0, 2.0, 3.0]) == "2.000 [-0.484, 4.484]"
    assert student([1.5]) == "1.500"


def test_cells_are_made_once_and_rates_are_chosen_on_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {name: SIDES[name] for name in ("base", "random masks")} | {
        "masks": Side("mask", (1e-3, 1e-2)),
        "full + dropout": Side("full", (1e-5, 10.0), (("dropout", 0.1),)),
    }
    monkeypatch.setattr(table1, "SIDES", sides)
    monkeypatch.setattr(world, "HELD_OUT", 4)
    monkeypatch.setattr(world, "DENSITY_PROMPTS", 2)
    monkeypatch.setattr(world, "TrainConfig", partial(TrainConfig, train_batch_size=4))
    config = Table1Config(2, 2, 8, 12, 1, 12, 64, num_inference_steps=2)
    said: list[str] = []
    result = reproduce_table1(tmp_path, config, say=said.append)
    assert {name: len(cells) for name, cells in result["cells"].items()} == dict.fromkeys(sides, 2)
    assert all(cell["n"] == 12 for cells in result["cells"].values() for cell in cells)
    # A rate of 10 ruins every weight, even in warm-up; validation sees it.
    assert result["cells"]["full + dropout"][0]["learning_rate"] == 1e-5
    assert result["cells"]["random masks"][0]["density"] == pytest.approx(0.5, abs=0.01)
    first, second = result["cells"]["base"]
    assert first["fid"] != second["fid"]
    text = table1_markdown(result)
    assert all(f"| {name} |" in text for name in sides)
    assert "270.22" in text

    def never(*args: object, **options: object) -> None:
        raise AssertionError("a finished cell was made again")

    monkeypatch.setattr(world, "train", never)
    monkeypatch.setattr(world.World, "measure", never)
    assert reproduce_table1(tmp_path, config)["cells"] == result["cells"]
