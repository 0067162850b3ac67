"""`maskunet ui` before there is a page: what is missing is said, and nothing is loaded for help."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # put back afterwards


def test_without_gradio_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = run("ui")
    assert code == 2
    assert 'pip install "maskunet[ui]"' in err


# Gradio lets go of the socket that it looks for a port with when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_offered_is_said(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("ui", "--model", model, "--masker", "nowhere", "--device", "cpu")
    assert code == 2
    assert "'nowhere'" in err
    assert not (tmp_path / "maskunet-ui").exists()
    (tmp_path / "file").write_text("")
    code, _, err = run("ui", "--output", "file")
    assert code == 2
    assert "a folder that can be written" in err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("ui", "--model", model, "--device", "cpu", "--port", taken.getsockname()[1])
    assert code == 2
    assert "--port" in err
    gc.collect()  # or its warning comes in a later test


def test_help_imports_neither_gradio_nor_torch() -> None:
    program = (
        "import sys; sys.argv = ['maskunet', 'ui', '--help']\n"
        "from maskunet.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'gradio', 'torch', 'diffusers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("set()")
