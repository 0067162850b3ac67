"""Table 1 in miniature: it shows the machinery and no result."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from benchmarks.studies import table1, world
from benchmarks.studies.plots import plot_table1
from benchmarks.studies.report import table1_markdown
from benchmarks.studies.table1 import ROWS, Table1Config, TableRow, run_table1
from PIL import Image

from maskunet.training import TrainConfig

CONFIG = Table1Config(
    seeds=2,
    steps=2,
    train_samples=8,
    prompts=12,
    images_per_prompt=1,
    validation_prompts=12,
    reference_images=64,
    num_inference_steps=1,
)


def never(*args: object, **options: object) -> None:
    raise AssertionError("a finished cell was measured again")


def test_rates_are_selected_on_validation_and_finished_cells_are_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {name: ROWS[name] for name in ("base", "random masks")} | {
        "full + dropout": TableRow("full", (1e-5, 10.0), (("dropout", 0.1),)),
    }
    monkeypatch.setattr(table1, "ROWS", rows)
    monkeypatch.setattr(world, "HELD_OUT", 4)
    monkeypatch.setattr(world, "DENSITY_PROMPTS", 2)
    monkeypatch.setattr(world, "TrainConfig", partial(TrainConfig, train_batch_size=2))
    lines: list[str] = []
    record = run_table1(tmp_path, CONFIG, log=lines.append)
    assert len(lines) == 2 + 2 * 3
    assert {name: len(cells) for name, cells in record["cells"].items()} == dict.fromkeys(rows, 2)
    assert all(cell["n"] == 12 for cells in record["cells"].values() for cell in cells)
    # A learning rate of 10 ruins every weight, even in warm-up; validation shows it.
    assert record["cells"]["full + dropout"][0]["learning_rate"] == 1e-5
    assert record["cells"]["random masks"][0]["density"] == pytest.approx(0.5, abs=0.01)
    first, second = record["cells"]["base"]
    assert first["fid"] != second["fid"]
    text = table1_markdown(record)
    assert all(f"| {name} |" in text for name in rows)
    assert "| 270.22 |" in text

    written = plot_table1(record, tmp_path)
    assert [p.name for p in written] == ["table1_rates.png", "table1_differences.png"]
    with Image.open(written[1]) as image:
        assert image.width > 1000

    monkeypatch.setattr(world, "train", never)
    monkeypatch.setattr(world.World, "measure", never)
    assert run_table1(tmp_path, CONFIG)["cells"] == record["cells"]
