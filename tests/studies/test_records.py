"""Records: intervals, tables, and the ones in docs/results, whose tables must follow from their JSON."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
from benchmarks.records import RESULTS, half_width, markdown_table, mean_text, read_record, rounded, save_record

TABLES = {
    "ablations": "studies.report.ablations_markdown",
    "amortised": "studies.amortised_report.amortised_markdown",
    "batched_layers": "batched_layers.table",
    "guidance": "studies.guidance_report.guidance_markdown",
    "mask_forms": "studies.report.ablations_markdown",
    "masked_forward": "masked_forward.table",
    "masked_layers": "masked_layers.table",
    "reward_generalisation": "reward_generalisation.table",
    "search": "studies.search_report.search_markdown",
    "search_iteration": "search_iteration.table",
    "search_shapes-matching": "studies.search_report.search_markdown",
    "search_variants": "search_variants.table",
    "startup": "startup.table",
    "syngen": "syngen.table",
    "syngen_validation": "syngen.table",
    "table1": "studies.report.table1_markdown",
    "training_step": "training_step.table",
    "ui/page": "page.table",
}


def test_intervals() -> None:
    assert mean_text([1.0, 2.0, 3.0]) == "2.000 [-0.484, 4.484]"
    assert mean_text([1.5]) == "1.500"
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3))
    assert half_width([1.5]) == 0


def test_values_are_rounded_to_significant_digits() -> None:
    assert rounded([-0.0123456, 1234.56, 0.5]) == [-0.01235, 1235.0, 0.5]


def test_a_record_is_saved_with_its_table(tmp_path: Path) -> None:
    table = markdown_table(["side", "seconds"], [["base", 1.5], ["masked", None]])
    save_record({"sides": [1, 2]}, tmp_path / "new" / "a.json", "A title", table, [tmp_path / "new" / "a_b.png"])
    assert read_record(tmp_path / "new" / "a.json") == {"sides": [1, 2]}
    text = (tmp_path / "new" / "a.md").read_text()
    assert text.startswith("# A title\n\n| side | seconds |\n|---|---|\n| base | 1.5 |\n| masked |  |\n")
    assert "![a b](a_b.png)" in text
    assert "[a.json](a.json)" in text
    assert read_record(tmp_path / "none.json") == {}


@pytest.mark.parametrize("name", TABLES)
def test_tables_follow_from_their_records(name: str) -> None:
    module, function = f"benchmarks.{TABLES[name]}".rsplit(".", 1)
    table = getattr(importlib.import_module(module), function)(read_record(RESULTS / f"{name}.json"))
    assert table in (RESULTS / f"{name}.md").read_text()


def test_every_record_is_complete_and_checked() -> None:
    records = {path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.json")}
    assert {name for name in records if not name.startswith("analysis/")} == {*TABLES, "bundled_model"}
    linked = "".join(path.read_text() for path in RESULTS.rglob("*.md"))
    linked += "".join(path.read_text() for path in RESULTS.parent.glob("*.md"))
    assert not [path.name for path in RESULTS.rglob("*") if path.is_file() and path.name not in linked]
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < 3e6


def test_records_of_rewards_are_of_the_bundled_weights() -> None:
    from benchmarks.studies.search import reward_digest

    for name in ("search", "search_shapes-matching", "amortised"):
        record = read_record(RESULTS / f"{name}.json")
        assert record["reward_weights"] == reward_digest(record["config"]["reward"]), name
