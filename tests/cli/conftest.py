"""The command line in process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from maskunet.cli import main as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maskunet.allocator.keep_freed_memory", lambda: True)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskunet", *map(str, words)])
        capsys.readouterr()  # what fixtures wrote
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return int(code or 0), out.out, out.err  # type: ignore[call-overload]

    return call


@pytest.fixture
def model(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
