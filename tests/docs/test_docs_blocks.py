"""Every block of code on the pages runs on the bundled model, as a reader would run it; docs_tables says what is changed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import runpy
import shlex
import sys
import tomllib
import warnings
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


def matches(table: Table, text: str) -> Iterator[str]:
    return (value for pattern, value in table if re.match(pattern, text))


def substitute(table: Table, text: str) -> str:
    for pattern, value in table:
        text = re.sub(pattern, value, text, flags=re.MULTILINE)
    return text


def parse_maskunet(words: list[str]) -> None:
    """Parse `maskunet ...` without running it; an unknown command or flag raises."""
    command: Any = typer.main.get_command(app)
    words = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("maskunet", words)


def check_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the options of `python FILE ...` or `python -m MODULE ...` against what it prints with --help."""
    is_module = words[1] == "-m"
    name, arguments = (words[2], words[3:]) if is_module else (words[1], words[2:])
    subcommands = itertools.takewhile(lambda word: not word.startswith("-"), arguments)
    monkeypatch.setattr(sys, "argv", [name, *subcommands, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    run = runpy.run_module if is_module else runpy.run_path
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module may have been imported before
        with pytest.raises(SystemExit) as stop:
            run(name if is_module else str(ROOT / name), run_name="__main__")
    assert not stop.value.code, f"{name} --help ended with {stop.value.code}"
    options = set(re.findall(r"--[\w-]+", out.getvalue()))
    unknown = [word for word in arguments if word.startswith("--") and word not in options]
    assert not unknown, f"{name} has no {', '.join(unknown)}"


def check_target(target: str) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target in targets, f"the Makefile has no target {target!r}"


class Reader:
    """Reads a page from the top: one namespace, one folder."""

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
            elif block.language in ("json", "jsonl"):
                texts = block.text.splitlines() if block.language == "jsonl" else [block.text]
                [json.loads(text) for text in texts]

    def python(self, block: Block) -> None:
        # Blank lines before it, so that a traceback names the page's own lines.
        text = "\n" * (block.line - 1) + substitute(tables.PYTHON, block.text)
        exec(compile(text, str(block.page), "exec"), self.namespace)

    def shell(self, command: str) -> None:
        if next(matches(tables.NOT_RUN, command), None):
            return
        command = re.sub(r"^([A-Z_0-9]+=\S* )+", "", command)  # variables of the reader's shell
        words = shlex.split(substitute(tables.SHELL, command))
        if next(matches(tables.PARSED, command), None):
            self.parse(words)
            return
        assert words[0] == "maskunet", f"no rule for {command!r}: add it to a table of docs_tables"
        extra = [word for flags in matches(tables.CHEAPER, command) for word in flags.split()]
        code, out, err = self.run(*words[1:], *extra)
        assert code == 0, f"{shlex.join([*words, *extra])}\n{out}{err}"

    def parse(self, words: list[str]) -> None:
        if words[0] == "make":
            check_target(words[1])
        elif words[0] == "python":
            check_script(words, self.monkeypatch)
        else:
            parse_maskunet(words[words.index("maskunet") :])


def test_pages_have_blocks() -> None:
    assert len(PAGES) > 10
    assert all(read_blocks(page) for page in PAGES if page.parent == ROOT or page.name == "search.md")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if read_blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
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
        ("sh", "maskunet analyze density --no-such-flag\n", "(?i)no such option"),
        ("sh", "python docs/check_links.py --no-such-flag\n", "has no --no-such-flag"),
        ("sh", "python -m benchmarks.studies table1 --no-such-flag\n", "has no --no-such-flag"),
        ("sh", "make no-such-target\n", "no target"),
        ("sh", "rm -r /\n", "no rule for"),
        ("", "maskunet\n", "needs a language"),
        ("toml", "[", "."),
    ],
)
def test_a_broken_block_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch, language: str, text: str, message: str
) -> None:
    with pytest.raises((Exception, AssertionError)) as caught:
        Reader(run, monkeypatch).block(Block(ROOT / "README.md", 1, language, text))
    reason = f"{caught.value} {getattr(caught.value, 'message', '')}"
    assert re.search(message, reason), reason


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
