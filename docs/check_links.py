"""Check the links of the pages: files, anchors and pictures exist here, addresses elsewhere are well formed.

python docs/check_links.py     # the README, CONTRIBUTING and docs/*.md; prints each page; exit code 1 if a link is broken

Nothing is fetched.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]

_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[ \t]*$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)
_HTML = re.compile(r"<(?:a|img)\b[^>]*\b(?:href|src)=[\"']([^\"']*)[\"']")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that are checked."""
    return [root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("*.md"))]


def links(text: str) -> Iterator[tuple[int, str]]:
    """Return line and target of every link and picture outside code."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    bare = _INLINE_CODE.sub(blank, _FENCED.sub(blank, text))
    for pattern in (_LINK, _REFERENCE, _HTML):
        for found in pattern.finditer(bare):
            yield bare.count("\n", 0, found.start()) + 1, found[1]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    found, seen = set(), Counter[str]()
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = (c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LN")
        name = "".join(kept).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def problem(page: Path, target: str, root: Path = ROOT) -> str | None:
    """Return what is wrong with a link on a page, or None."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        if parts.scheme == "mailto":
            return None
        well = parts.scheme in ("https", "http") and re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc)
        return None if well else "no well-formed address"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not path.exists():
        return "no such file"
    if not path.is_relative_to(root.resolve()):
        return "outside the repository"
    if parts.fragment and path.suffix == ".md" and unquote(parts.fragment) not in anchors(path.read_text("utf-8")):
        return "no such heading"
    return None


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """Return a line for each broken link of a page."""
    found = []
    for line, target in links(page.read_text(encoding="utf-8")):
        if not target:
            found.append(f"{page.relative_to(root)}:{line}: an empty link")
        elif wrong := problem(page, target, root):
            found.append(f"{page.relative_to(root)}:{line}: {target}: {wrong}")
    return found


def main() -> None:
    """Check every page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    wrong = []
    for page in pages():
        found = broken(page)
        count = len(list(links(page.read_text(encoding="utf-8"))))
        print(f"{page.relative_to(ROOT)}: {count} links" + (f", {len(found)} broken" if found else ""))
        wrong += found
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
