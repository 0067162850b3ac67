"""The demo and the sheet, small, on the bundled model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from maskunet.cli.demo import run_demo
from maskunet.cli.image_files import write_sheet
from maskunet.zoo import load


def test_demo_writes_a_page_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path / "demo", count=12, steps=4, guidance_scale=4.0, seed=0)
    out = capsys.readouterr().out
    assert "| **overall** |" in out
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 24
    assert "<svg" in page
    assert "nan" not in re.sub(r'base64,[^"]+', "", page).lower()
    assert len(list((tmp_path / "demo" / "base").glob("*.png"))) == 12
    with Image.open(tmp_path / "demo" / "comparison.png") as sheet:
        assert sheet.width == 12 * 64 * 2
    assert not list(tmp_path.rglob("*.part"))


def test_sheet_counts_the_correct_images(tmp_path: Path) -> None:
    right = write_sheet(load(), tmp_path / "sheet.png", count=10, steps=3, guidance_scale=4.0, seed=0)
    assert 0 <= right <= 10
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 64 * 2, 2 * 64 * 2)
