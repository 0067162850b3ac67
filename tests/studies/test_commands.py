"""`python -m benchmarks.studies`: one-line errors, and records that a trial does not replace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.records import RESULTS
from benchmarks.studies import __main__ as commands
from benchmarks.studies import ablations


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["studies", *words])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--reward", "image-reward"], "bundled reward"),
        (["amortised", "--reward", "image-reward"], "bundled reward"),
        (["table1", "--share", "2"], "--share"),
        (["ablations", "--variant", "without timestip"], "expected variants among"),
        (["table2"], "table2"),
    ],
)
def test_a_wrong_value_ends_in_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words, *(["--output", "out"] if words != ["table2"] else [])) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("*.json"))


def test_help_is_shown_without_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("table1", "ablations", "amortised", "search"))


@pytest.mark.parametrize(
    ("words", "is_trial"), [(["--share", "0.5"], True), (["--variant", "all layers"], True), ([], False)]
)
def test_a_trial_does_not_replace_the_record(
    words: list[str], is_trial: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablations, "run_ablations", lambda *_, **__: {})
    monkeypatch.setattr("benchmarks.studies.report.ablations_markdown", lambda record: "")
    monkeypatch.setattr("benchmarks.studies.plots.plot_ablations", lambda record, folder: [])

    def save(record: Any, path: Path, *_: Any) -> None:
        saved.append(path)

    monkeypatch.setattr(commands, "save_record", save)
    assert run(monkeypatch, "ablations", *words) == 0
    assert saved == [(Path("runs/ablations") if is_trial else RESULTS) / "ablations.json"]
