"""The compatibility page lists exactly what the matrix of tests runs."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def names(constant: str) -> list[str]:
    tree = ast.parse((ROOT / "tests" / "compatibility" / "test_matrix.py").read_text())
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == constant
    ]
    return list(ast.literal_eval(values[0]))


def test_the_page_is_the_matrix() -> None:
    lines = [line for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["pipeline", *names("MASKERS")]
    assert [row[0] for row in rows] == names("PIPELINES")
    assert all(cell == "✓" for row in rows for cell in row[1:])
