"""Every block of code on the pages runs on the bundled model, as a reader would run it; docs_tables says what is changed."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docs_tables as tables
import pytest
import typer
from docs_blocks import PAGES, PYTHON, ROOT, SHELL, SHOWN, Block, commands, read_blocks

from maskunet.cli.main import app

Run = Callable[..., tuple[int, str, str]]
Table = list[tuple[str, str]]


def matching(table: Table, text: str) -> Iterator[str]:
    return (value for pattern, value in table if re.match(pattern, text))


def substituted(table: Table, text: str) -> str:
    for pattern, value in table:
        text = re.sub(pattern, value, text)
    return text


def parse(words: list[str]) -> None:
    """Let the command line parse `maskunet ...` without running it; an unknown command or flag raises."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(words[0], rest)


def script_help(script: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the options that a script of this repository takes, as its own parser prints them."""
    path = ROOT / script
    assert path.is_file(), f"there is no {script}"
    if "argparse" not in path.read_text():
        return []
    shown: list[str] = []
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda self, *_: shown.append(self.format_help()))
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    return re.findall(r"--[\w-]+", shown[0])


class Reader:
    """Who reads a page from the top: one namespace, one folder."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.monkeypatch = run, monkeypatch
        self.namespace: dict[str, Any] = {"__name__": "page"}

    def block(self, block: Block) -> None:
        if block.language in PYTHON:
            self.python(block)
        elif block.language in SHELL:
            for command in commands(block):
                self.shell(command)
        else:
            assert block.language in SHOWN, f"a fence needs a language: python, sh, or {', '.join(SHOWN)}"
            if block.language == "toml":
                tomllib.loads(block.text)
            elif block.language == "jsonl":
                [json.loads(line) for line in block.text.splitlines()]
            elif block.language == "json":
                json.loads(block.text)

    def python(self, block: Block) -> None:
        # Blank lines before it, so that a traceback names the page's own lines.
        text = "\n" * (block.line - 1) + substituted(tables.PYTHON, block.text)
        code = compile(text, str(block.page), "exec")
        if not any(part in block.text for part, _ in tables.COMPILED):
            exec(code, self.namespace)

    def shell(self, command: str) -> None:
        if next(matching(tables.NOT_RUN, command), None):
            return
        command = re.sub(r"^([A-Z_0-9]+=\S* )+", "", command)  # variables of the reader's shell
        words = shlex.split(substituted(tables.SHELL, command))
        if next(matching(tables.PARSED, command), None):
            self.parse(words)
            return
        assert words[0] == "maskunet", f"no rule for {command!r}: a table of docs_tables has to say what is done"
        extra = [word for flags in matching(tables.CHEAPER, command) for word in flags.split()]
        code, out, err = self.run(*words[1:], *extra)
        assert code == 0, f"{shlex.join([*words, *extra])}\n{out}{err}"

    def parse(self, words: list[str]) -> None:
        if words[0] == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets, f"the Makefile has no target {words[1]!r}"
        elif words[0] == "python":
            known = script_help(words[1], self.monkeypatch)
            unknown = [word for word in words if word.startswith("--") and word not in known]
            assert not unknown, f"{words[1]} has no {', '.join(unknown)}"
        else:
            parse(words[words.index("maskunet") :])


def test_pages_are_found() -> None:
    assert len(PAGES) > 4
    assert all(read_blocks(page) for page in PAGES if page.name in ("README.md", "CONTRIBUTING.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, run: Run, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(run, monkeypatch)
    for block in read_blocks(page):
        try:
            reader.block(block)
        except BaseException as error:
            error.add_note(f"in the block at {block.where}")
            raise
    assert Path.cwd() == workspace


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("python", "import maskunet as mu\nmu.no_such_name\n", "no_such_name"),
        ("python", "pipe =\n", "invalid syntax"),
        ("sh", "maskunet generate --model path/or/hub-id --no-such-flag\n", "no-such-flag"),
        ("sh", "maskunet reproduce search --no-such-flag\n", "(?i)no such option"),
        ("sh", "python benchmarks/bundled_model.py --no-such-flag\n", "has no --no-such-flag"),
        ("sh", "make no-such-target\n", "no target"),
        ("sh", "rm -r /\n", "no rule for"),
        ("", "maskunet\n", "needs a language"),
        ("toml", "[", "."),
    ],
)
def test_a_block_that_does_not_work_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch, language: str, text: str, message: str
) -> None:
    with pytest.raises((Exception, AssertionError)) as caught:
        Reader(run, monkeypatch).block(Block(ROOT / "README.md", 1, language, text))
    said = f"{caught.value} {getattr(caught.value, 'message', '')}"
    assert re.search(message, said), said


def test_blocks_are_read_as_they_are_shown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n    make demo  # why\n    maskunet info 'a b' \\\n        --targets all\n\n- item\n\n    of the item\n\n"
        "```python\nx = 1\n\n```\ntext\n```sh\nmaskunet demo && make test\n```\n"
    )
    first, second, third = read_blocks(page)
    assert (first.language, first.line, second.line, third.line) == ("indented", 3, 12, 17)
    assert commands(first) == ["make demo", "maskunet info 'a b' --targets all"]
    assert (second.language, second.text) == ("python", "x = 1\n")
    assert commands(third) == ["maskunet demo", "make test"]
