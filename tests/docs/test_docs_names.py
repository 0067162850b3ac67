"""Options, public names, files and messages that the pages mention in their text exist in the source."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_tables as tables
import pytest
import typer
from docs_blocks import PAGES, ROOT, inline_code, read_blocks

from maskunet.cli.app import normalise
from maskunet.cli.main import app

SOURCE = ROOT / "src" / "maskunet"
MESSAGES = ROOT / "docs" / "troubleshooting.md"
_FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
_NAME = re.compile(r"\b(?:mu|maskunet)((?:\.[A-Za-z_]\w*)+)")
_FILE = re.compile(r"^[\w-]+(/[\w-]+)+\.py$")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def options_of(command: Any) -> set[str]:
    """Return all options of a command and of those below it."""
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return options.union(*map(options_of, getattr(command, "commands", {}).values())) | {"--help"}


def command_of(words: list[str]) -> Any:
    """Return the command that words after `maskunet` begin with, as deep as they go."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return command


def script_options() -> set[str]:
    """Return the options in the source of this repository's scripts."""
    scripts = [path for folder in ("benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]
    return {flag for script in scripts for flag in re.findall(r'"(--[\w-]+)"', script.read_text())}


@every_page
def test_options_in_the_text_exist(page: Path) -> None:
    everywhere = options_of(typer.main.get_command(app)) | script_options()
    for code in inline_code(page):
        known = everywhere
        if code.startswith("maskunet "):
            known = options_of(command_of(shlex.split(code)[1:]))
        flags = set(_FLAG.findall(code)) - set(tables.OTHER_OPTIONS)
        unknown = {flag for flag in flags if flag not in known and f"--{normalise(flag[2:])}" not in known}
        assert not unknown, f"{page.name}: `{code}` names {', '.join(sorted(unknown))}, which is no option"


@every_page
def test_files_in_the_text_exist(page: Path) -> None:
    words = {word for code in inline_code(page) for word in code.split() if _FILE.match(word)}
    missing = [word for word in sorted(words) if not any((folder / word).is_file() for folder in (ROOT, SOURCE))]
    assert missing == []


def resolves(name: str) -> bool:
    """Whether a dotted name below maskunet is a module, or an attribute or a field of what comes before."""
    value: Any = importlib.import_module("maskunet")
    parts = name.strip(".").split(".")
    for i, part in enumerate(parts):
        if hasattr(value, part):
            value = getattr(value, part)
        elif dataclasses.is_dataclass(value) and part in {field.name for field in dataclasses.fields(value)}:
            return True
        else:
            try:
                value = importlib.import_module(".".join(["maskunet", *parts[: i + 1]]))
            except ImportError:
                return False
    return True


@every_page
def test_public_names_exist(page: Path) -> None:
    names = set(_NAME.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not resolves(name)] == []


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Return the string literals of a module, with … for the values in f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_quoted_messages_are_ours() -> None:
    """Each sentence of a quoted message, between two …, stands word for word in one string of the source."""
    texts = [text for file in SOURCE.rglob("*.py") for text in texts_of(ast.parse(file.read_text()))]
    texts = [" ".join(text.split()) for text in texts]
    quoted = [block for block in read_blocks(MESSAGES) if block.language == "text"]
    assert len(quoted) > 20
    missing = []
    for block in quoted:
        for piece in re.split(r"…|(?<=\.) ", " ".join(block.text.split())):
            part = piece.strip(" .;:,()")
            if not any(part in text for text in texts):
                missing.append(f"{block.where}: {part!r} is no message of ours")
    assert not missing, "\n".join(missing)


def test_a_missing_name_or_option_is_noticed() -> None:
    assert resolves(".search")
    assert resolves(".SearchConfig.preset")
    assert resolves(".sampling.pipeline_side")
    assert not resolves(".serach")
    assert not resolves(".rewards.no_such_reward")
    assert "--preset" in options_of(command_of(["search"]))
    assert "--preset" not in options_of(command_of(["train"]))
