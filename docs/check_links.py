"""Check the links of the pages: files, headings and images exist here, addresses elsewhere are well formed.

python docs/check_links.py     # README, CONTRIBUTING, CHANGELOG and docs/**/*.md; exit code 1 if a link is broken

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
    """Return the pages to check.

    Args:
        root: folder of the repository.
    """
    return [
        root / "README.md",
        root / "CONTRIBUTING.md",
        root / "CHANGELOG.md",
        *sorted((root / "docs").rglob("*.md")),
    ]


def links(text: str) -> Iterator[tuple[int, str]]:
    """Return line and target of every link and image outside code.

    Args:
        text: Markdown.
    """

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    prose = _INLINE_CODE.sub(blank, _FENCED.sub(blank, text))
    for pattern in (_LINK, _REFERENCE, _HTML):
        for match in pattern.finditer(prose):
            yield prose.count("\n", 0, match.start()) + 1, match[1]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings.

    Args:
        text: Markdown.
    """
    names, uses = set(), Counter[str]()
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        letters = (c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LN")
        name = "".join(letters).replace(" ", "-")
        names.add(f"{name}-{uses[name]}" if uses[name] else name)
        uses[name] += 1
    return names


def problem(page: Path, target: str, root: Path = ROOT) -> str | None:
    """Return what is wrong with a link, or None.

    Args:
        page: the page it is on.
        target: where it leads.
        root: folder of the repository.
    """
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        if parts.scheme == "mailto":
            return None
        valid = parts.scheme in ("https", "http") and re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc)
        return None if valid else "no well-formed address"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not path.exists():
        return "no such file"
    if not path.is_relative_to(root.resolve()):
        return "outside the repository"
    if parts.fragment and path.suffix == ".md" and unquote(parts.fragment) not in anchors(path.read_text("utf-8")):
        return "no such heading"
    return None


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """Return one line for each broken link of a page.

    Args:
        page: the page.
        root: folder of the repository.
    """
    lines = []
    for line, target in links(page.read_text(encoding="utf-8")):
        if not target:
            lines.append(f"{page.relative_to(root)}:{line}: an empty link")
        elif wrong := problem(page, target, root):
            lines.append(f"{page.relative_to(root)}:{line}: {target}: {wrong}")
    return lines


def main() -> None:
    """Check every page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    messages = []
    for page in pages():
        lines = broken(page)
        count = len(list(links(page.read_text(encoding="utf-8"))))
        print(f"{page.relative_to(ROOT)}: {count} links" + (f", {len(lines)} broken" if lines else ""))
        messages += lines
    print("\n".join(messages), end="\n" if messages else "", file=sys.stderr)
    sys.exit(1 if messages else 0)


if __name__ == "__main__":
    main()
