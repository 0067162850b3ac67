"""A backend over a tiny pipeline; one server of the real command and one browser for the whole session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure

from maskunet.attaching import attachment_of
from maskunet.maskers import RandomMasks
from maskunet.ui.backend import Backend
from maskunet.ui.offered_models import OfferedModels
from maskunet.ui.requests import Request
from maskunet.ui.results_folder import ResultsFolder


@dataclass(frozen=True)
class FakeAnalysis:
    """What `maskunet.analysis` gives, made of nothing."""

    settings: Any
    title: str = "How much?"
    answer: str = "This much."
    rows: list[dict[str, Any]] = field(default_factory=lambda: [{"measure": "a", "value": 0.5, "unit": "%"}])

    def draw(self) -> Figure:
        return Figure()

    def save(self, folder: Path) -> list[Path]:
        (folder / "how.csv").write_text("measure,value\n")
        return [folder / "how.csv"]


class FakeAnalyses:
    """Stands in for the module `maskunet.analysis`."""

    NAMES = ("density", "random")

    def __init__(self) -> None:
        self.attached: list[Any] = []

    def AnalysisSettings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def analyze(self, name: str, pipe: Any, settings: Any, *, progress: Any) -> FakeAnalysis:
        attachment = attachment_of(pipe)
        self.attached.append(None if attachment is None else attachment.masker)
        progress(1.0, "done")
        return FakeAnalysis(settings)


@pytest.fixture
def offered(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """A folder with a tiny model and two maskers for it."""
    pipe.save_pretrained(tmp_path / "tiny")
    for seed, density in ((1, 0.9), (2, 0.6)):
        RandomMasks.for_unet(pipe.unet, density=density, seed=seed).save_pretrained(tmp_path / f"masker-{seed}")
    return tmp_path


@pytest.fixture
def make_backend(offered: Path) -> Any:
    """Make a backend that offers the tiny model, with a reward or without."""

    def build(*rewards: str) -> Backend:
        folder = ResultsFolder(offered / "files")
        maskers = [str(offered / f"masker-{seed}") for seed in (1, 2)]
        models = OfferedModels([str(offered / "tiny")], maskers, rewards, folder, device="cpu")
        return Backend(models, folder, FakeAnalyses())

    return build


@pytest.fixture
def request_() -> Request:
    """A small request to the tiny model."""
    return Request("tiny", "a b", steps=3, guidance_scale=4.0, seed=5, masker="masker-1")


@dataclass(frozen=True)
class Server:
    """The page of the bundled model: its address and the one folder that it may write to."""

    url: str
    folder: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run `maskunet ui` as a user would, in a folder of its own."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["ui", "--port", str(port), "--output", "page", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "TMPDIR": str(home)}
    log = home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "maskunet", *words], cwd=home, env=environment, stdout=out, stderr=out
        )
    try:
        while "page: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}", home / "page")
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start the Chromium that is on PATH."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as drive:
        chromium = drive.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()
