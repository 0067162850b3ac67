"""What the pages promise as a whole: lengths, the list of floors, the conda environment."""

from __future__ import annotations

import re
import runpy

import pytest
import yaml
from docs_blocks import ROOT, read_blocks

#: Lines that a reader gets through in five minutes.
LIMITS = {"README.md": 110, "docs/architecture.md": 100, "docs/reproduction.md": 130}


@pytest.mark.parametrize("name", LIMITS)
def test_pages_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= LIMITS[name]


def test_architecture_prints_the_floors() -> None:
    floors = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["FLOORS"]
    blocks = [block for block in read_blocks(ROOT / "docs" / "architecture.md") if "relaxation" in block.text]
    printed = [tuple(line.split()[1:]) for line in blocks[0].text.splitlines()]
    numbers = [int(line.split()[0]) for line in blocks[0].text.splitlines()]
    assert printed == list(floors)
    assert numbers == list(range(len(floors)))


def test_conda_installs_the_tested_set() -> None:
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    assert environment["name"] == "maskunet"
    *packages, pip = environment["dependencies"]
    assert packages == ["python=3.11", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    requires = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert requires is not None
    assert requires[1] == "3.11"
