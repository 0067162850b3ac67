"""Options, public names and messages that the pages mention in their text exist in the source."""

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

from maskunet.cli.main import app

SOURCE = ROOT / "src" / "maskunet"
MESSAGES = ROOT / "docs" / "troubleshooting.md"
_FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
_NAME = re.compile(r"\b(?:mu|maskunet)((?:\.[A-Za-z_]\w*)+)")


def options_of(command: Any) -> set[str]:
    """Return all options of a command and of those below it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options_of, getattr(command, "commands", {}).values())) | {"--help"}


def command_of(words: list[str]) -> Any:
    """Return the command that words after `maskunet` begin with, as deep as they go."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return command


def script_options() -> set[str]:
    """Return the options in the source of this repository's scripts."""
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py")]
    return {flag for script in scripts for flag in re.findall(r'"(--[\w-]+)"', script.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    everywhere = options_of(typer.main.get_command(app)) | script_options()
    for code in inline_code(page):
        known = everywhere
        if code.startswith("maskunet "):
            known = options_of(command_of(shlex.split(code)[1:]))
        if script := re.match(r"python (\S+\.py)", code):
            assert (ROOT / script[1]).is_file(), f"{page.name}: there is no {script[1]}"
        unknown = set(_FLAG.findall(code)) - known - set(tables.OTHER_OPTIONS)
        assert not unknown, f"{page.name}: `{code}` names {', '.join(sorted(unknown))}, which is no option"


def resolves(name: str) -> bool:
    """Whether a dotted name below maskunet is a module, or an attribute or a field of what comes before."""
    found: Any = importlib.import_module("maskunet")
    parts = name.strip(".").split(".")
    for i, part in enumerate(parts):
        if hasattr(found, part):
            found = getattr(found, part)
        elif dataclasses.is_dataclass(found) and part in {field.name for field in dataclasses.fields(found)}:
            return True
        else:
            try:
                found = importlib.import_module(".".join(["maskunet", *parts[: i + 1]]))
            except ImportError:
                return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_public_names_exist(page: Path) -> None:
    names = set(_NAME.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not resolves(name) and name.strip(".") not in tables.FILES] == []


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Return the string literals of a module, with … for the values in f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_quoted_messages_are_ours() -> None:
    """Each sentence of a quoted message, between two …, has to stand word for word in one string of the source."""
    texts = [text for file in SOURCE.rglob("*.py") for text in texts_of(ast.parse(file.read_text()))]
    texts = [" ".join(text.split()) for text in texts]
    quoted = [block for block in read_blocks(MESSAGES) if block.language == "text"]
    assert len(quoted) > 20
    for block in quoted:
        for piece in re.split(r"…|(?<=\.) ", " ".join(block.text.split())):
            wanted = piece.strip(" .;:,()")
            assert any(wanted in text for text in texts), f"{block.where}: {wanted!r} is no message of ours"


def test_a_name_or_an_option_that_is_gone_is_found() -> None:
    assert resolves(".search")
    assert resolves(".SearchConfig.preset")
    assert resolves(".evaluation.pipeline_side")
    assert not resolves(".serach")
    assert not resolves(".rewards.no_such_reward")
    assert "--preset" in options_of(command_of(["search"]))
    assert "--preset" not in options_of(command_of(["train"]))
