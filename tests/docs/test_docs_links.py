"""Links of the pages, and the checker that `make docs` runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import PAGES, ROOT

CHECKER = ROOT / "docs" / "check_links.py"
check: dict[str, Any] = runpy.run_path(str(CHECKER))


@pytest.mark.parametrize("page", check["pages"](), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert check["broken"](page) == []


def test_every_page_is_checked_and_in_the_contents() -> None:
    assert set(PAGES) <= set(check["pages"]())
    index = ROOT / "docs" / "index.md"
    targets = {target for _, target in check["links"](index.read_text())}
    assert {page.name for page in index.parent.glob("*.md")} - {index.name} <= targets, "add a row to docs/index.md"
    decisions = ROOT / "docs" / "decisions" / "README.md"
    targets = {target for _, target in check["links"](decisions.read_text())}
    assert {page.name for page in decisions.parent.glob("*.md")} - {decisions.name} <= targets


def test_broken_links_are_reported(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    other, page = tmp_path / "docs" / "other.md", tmp_path / "page.md"
    other.write_text("# A `b`, c\n\n## Twice\n\n## Twice\n\n```sh\n# no heading\n```\n")
    good = ["[a](docs/other.md)", "[a](docs/other.md#a-b-c)", "[a](docs/other.md#twice-1)", "[a](#own)", "`[a](b)`"]
    good += ["[a](https://example.org/x)", '![p](docs/other.md "title")', "[![p](docs/other.md)](docs/other.md)"]
    bad = ["[a](gone.md)", "[a](docs/other.md#no-heading)", "[a](#gone)", "![p](gone.png)", "[a](https://)", "[a]()"]
    bad += ['<img src="gone.png">', "[r]: gone.md", "[a](../../etc/passwd)"]
    page.write_text("\n\n".join(["# Own", *good]))
    assert check["broken"](page, tmp_path) == []
    page.write_text("\n\n".join(["# Own", *bad]))
    assert len(check["broken"](page, tmp_path)) == len(bad)


def test_the_checker_prints_the_pages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check_links.py"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(CHECKER), run_name="__main__")
    assert stop.value.code == 0
    assert "docs/index.md" in capsys.readouterr().out
