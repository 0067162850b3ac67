"""The code that the pages show: blocks, shell commands, options and names, read from their Markdown."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: All pages but the changelog, which is about names that are gone, and the results, which scripts write.
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "decisions").glob("*.md"),
    ]
)

PYTHON, SHELL = ("python",), ("sh", "bash", "shell", "console", "indented")
#: Blocks that are looked at and not run: what a program prints, and files.
SHOWN = ("text", "toml", "json", "jsonl", "bibtex", "diff")

_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,}) *(\w*)")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A block of code on a page: its language ("" if a fence names none), first line's number from 1, and text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """Return a page's blocks in order, fenced and indented ones."""
    blocks: list[Block] = []
    lines: list[str] = []
    fence, language, start, indent, listed = "", "", 0, 0, False

    def close() -> None:
        if any(line.strip() for line in lines):
            blocks.append(Block(page, start, language, "\n".join(lines).rstrip() + "\n"))
        lines.clear()

    previous = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if fence:
            if match and match[2] == fence and not match[3]:
                close()
                fence = ""
            else:
                lines.append(line if line[:indent].strip() else line[indent:])
            continue
        code = line.startswith("    ") and not listed and (lines or not previous.strip())
        if lines and line.strip() and not code:
            close()
        if match:
            indent, fence, language, start = len(match[1]), match[2], match[3], number + 1
        elif code or (lines and not line.strip()):
            if not lines:
                language, start = "indented", number
            lines.append(line[4:])
        elif line.strip() and not line.startswith(" "):
            listed = re.match(r"([-*+]|\d+\.) ", line) is not None  # what follows indented belongs to the item
        previous = line
    close()
    return blocks


def commands(block: Block) -> list[str]:
    """Return the commands of a shell block, continued lines joined, comments dropped."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    # A comment may follow a continuation; shlex knows quotes, so "#" inside them stays.
    lines = [shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for line in joined.splitlines()]
    return [part for line in lines if line for part in re.split(r" '&&' ", line)]


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in read_blocks(page):
        for number in range(block.line - 1, block.line - 1 + block.text.count("\n")):
            lines[number] = ""
    return "\n".join(lines)


def inline_code(page: Path) -> list[str]:
    """Return what stands in backticks in a page's prose."""
    return _INLINE.findall(prose(page))
