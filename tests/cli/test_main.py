"""What all commands share: spellings, help and its speed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

from maskunet.cli.app import ALIASES, normalise
from maskunet.cli.main import app

Run = Callable[..., tuple[int, str, str]]
COMMANDS = {
    "demo",
    "generate",
    "search",
    "train",
    "evaluate",
    "benchmark geneval",
    "benchmark t2i-compbench",
    *(f"analyze {name}" for name in ("random", "density", "masks", "weights", "emergence", "samples", "all")),
    "info",
    "convert",
    "export",
    "ui",
    "zoo train",
    "zoo sample",
}


def commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    """Commands by name, those of groups too."""
    by_name: dict[str, Any] = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        by_name |= commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
    return by_name


def test_commands() -> None:
    assert commands().keys() == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_has_its_default_in_the_help(name: str) -> None:
    for parameter in commands()[name].params:
        if parameter.param_type_name == "option" and not parameter.required and parameter.name != "help":
            assert "[default: " in parameter.help, parameter.name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_begins_with_what_the_command_does(run: Run, name: str) -> None:
    code, out, err = run(*name.split(), "--help")
    assert (code, err) == (0, "")
    usage, blank, first = out.splitlines()[:3]
    assert usage.startswith(f"Usage: maskunet {name}")
    assert blank == ""
    assert first.startswith("  ")
    assert first[2].isupper()


def test_flags_have_one_spelling() -> None:
    for name, command in commands().items():
        for parameter in command.params:
            for flag in [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []:
                assert "_" not in flag, (name, flag)
                assert flag.removeprefix("--") not in ALIASES, (name, flag)


def test_aliases() -> None:
    assert normalise("pretrained_model_name_or_path") == "model"
    assert normalise("output-dir") == "output"
    assert normalise("num_inference_steps") == "steps"
    assert normalise("reward_num_inference_steps") == "reward-num-inference-steps"
    flags = {flag.removeprefix("--") for command in commands().values() for p in command.params for flag in p.opts}
    assert set(ALIASES.values()) <= flags


def test_without_a_command_the_help_is_printed(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "generate" in out


@pytest.mark.parametrize(
    "words",
    ["--help", "generate --help", "train --help", "search --help", "evaluate --help", "benchmark geneval --help"],
)
def test_help_imports_nothing_heavy(words: str) -> None:
    code = (
        f"import sys; sys.argv = ['maskunet', *{words.split()!r}]\n"
        "from maskunet.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'numpy', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "--help" in out.stdout
