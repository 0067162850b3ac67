"""Files of an analysis, rounding, and settings out of range."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from analyses import SETTINGS, schedule
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import AnalysisSettings, analyze
from maskunet.analysis.base import format_estimate, format_percent, row, to_arrays
from maskunet.attaching import attachment_of
from maskunet.errors import DataError, SettingError
from maskunet.metrics.intervals import Estimate


def expand(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one entry of `to_arrays`."""
    count = len(entry["value"]) if isinstance(entry["value"], list) else 1
    columns = {key: value if isinstance(value, list) else [value] * count for key, value in entry.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_files_hold_the_measured_values(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    attachment = mu.attach(pipe, schedule(pipe))
    for name in ("density", "masks", "weights", "emergence"):
        analysis = analyze(name, pipe, SETTINGS)
        written = analysis.save(tmp_path)
        assert [p.name for p in written] == [f"{name}.{kind}" for kind in ("png", "csv", "json")]
        text = (tmp_path / f"{name}.json").read_text()
        record = json.loads(text)
        assert record["answer"] == analysis.answer
        assert record["settings"]["n"] == 4
        assert record["settings"]["machine"]["cores"] >= 1
        with (tmp_path / f"{name}.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [float(line["value"] or math.nan) for line in table] == pytest.approx(
            [r["value"] for r in analysis.rows], nan_ok=True
        )
        rows = [r for entry in record["measures"] for r in expand(entry)]
        assert [(r["measure"], r["value"]) for r in rows] == [
            (r["measure"], r["value"] if math.isfinite(r["value"]) else None) for r in analysis.rows
        ]
        assert len(text.splitlines()) < 40 + 12 * len(record["measures"])
        assert "nan" not in text.lower() + (tmp_path / f"{name}.csv").read_text().lower()
    assert attachment_of(pipe) is attachment
    assert attachment.trace is None
    assert not list(tmp_path.glob("*.part"))
    assert [p.suffix for p in analysis.save(tmp_path, svg=True)] == [".png", ".svg", ".csv", ".json"]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="folder that can be written"):
        analysis.save(tmp_path / "file")


def test_rows_keep_four_significant_digits() -> None:
    line = row("a", Estimate(0.0123456, -1234.56, 100000.0), "share", side="base")
    assert line == {
        "measure": "a",
        "side": "base",
        "value": 0.01235,
        "low": -1235.0,
        "high": 100000.0,
        "unit": "share",
    }
    assert row("a", 1234567.0, "weights")["value"] == 1234567


def test_arrays_store_constant_columns_once() -> None:
    rows = [row("a", Estimate(i / 2, i, i + 1), "u", side="base", step=i) for i in range(3)]
    rows += [row("a", 0.5, "u", side="masked", step=0), row("b", math.nan, "u")]
    assert to_arrays(rows) == [
        {
            "measure": "a",
            "side": "base",
            "step": [0, 1, 2],
            "value": [0.0, 0.5, 1.0],
            "low": [0, 1, 2],
            "high": [1, 2, 3],
            "unit": "u",
        },
        {"measure": "a", "side": "masked", "step": 0, "value": 0.5, "unit": "u"},
        {"measure": "b", "value": None, "unit": "u"},
    ]


def test_numbers_in_answers() -> None:
    estimate = Estimate(0.0321, 0.03, 0.034)
    assert format_percent(estimate) == "3.2 % [3.0, 3.4]"
    assert format_percent(estimate, "+.1f", "points") == "+3.2 points [+3.0, +3.4]"
    assert format_percent(0.5, ".0f") == "50 %"
    assert format_estimate(Estimate(0.5, math.nan, math.nan)) == "0.50"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": (1.0,)}, "between 0 and 1, got 1.0"),
        ({"rates": ()}, "got none"),
        ({"count": 0}, "count to be an integer >= 1"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"prompts": ()}, "at least one"),
        ({"prompts": ("a", " ")}, "no empty one"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AnalysisSettings(**settings)
