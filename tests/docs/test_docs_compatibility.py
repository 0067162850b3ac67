"""The compatibility page lists exactly what the matrices of tests run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def names(module: str, constant: str) -> list[str]:
    tree = ast.parse((ROOT / "tests" / "compatibility" / f"{module}.py").read_text())
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and getattr(target, "id", "") == constant:
            assert node.value is not None
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"no {constant} in {module}")


@pytest.mark.parametrize(
    ("head", "module", "rows", "columns"),
    [
        ("pipeline", "test_matrix", "PIPELINES", "MASKERS"),
        ("scheduler", "test_schedulers", "SCHEDULERS", "MASKS"),
        ("U-Net", "test_unet_states", "STATES", "MASKERS"),
    ],
)
def test_the_page_is_the_matrix(head: str, module: str, rows: str, columns: str) -> None:
    lines = (ROOT / "docs" / "compatibility.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    header, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]
    assert header == [head, *names(module, columns)]
    assert [row[0] for row in cells] == names(module, rows)
    assert all(cell == "✓" for row in cells for cell in row[1:])
