"""Every benchmark imports, says what it measures, and shows its help."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if path.name != "__init__.py"
)
COMMANDS = [name for name in MODULES if "def main()" in (FOLDER.parent / f"{name.replace('.', '/')}.py").read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_and_are_documented(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.endswith("__main__")])
def test_commands_show_their_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    assert stop.value.code == 0
    assert f"python -m {name}" in capsys.readouterr().out


def test_every_command_is_in_the_index() -> None:
    index = (FOLDER.parent / "docs" / "results" / "README.md").read_text()
    commands = {f"python -m {name.removesuffix('.__main__')}" for name in COMMANDS}
    assert {command for command in commands if command not in index} == {"python -m benchmarks.what_can_gain"}
    assert (
        "python -m benchmarks.what_can_gain" in (FOLDER.parent / "docs" / "results" / "shapes_masker.md").read_text()
    )
