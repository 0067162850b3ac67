"""The page, asked through its programming interface and in a browser."""

from __future__ import annotations

import shutil
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")

from maskunet.ui.folder import Folder  # noqa: E402
from maskunet.ui.models import Models  # noqa: E402
from maskunet.ui.serve import serve  # noqa: E402
from maskunet.ui.studio import Studio  # noqa: E402


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    studio = make_studio(tmp_path_factory.mktemp("page"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = serve(studio, port=port)
        yield f"http://127.0.0.1:{port}"
        page.close()


def make_studio(folder: Path) -> Studio:
    place = Folder(folder)
    return Studio(Models(["shapes"], [], [], place, device="cpu"), place)


def test_a_comparison_through_the_programming_interface(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    options = {
        "model": "shapes",
        "masker": "shapes-masker",
        "prompt": "a red circle",
        "steps": 4,
        "guidance": 4,
        "seed": 3,
    }
    first, again = (client.predict(**options, api_name="/compare") for _ in range(2))
    pictures = [Path(p).read_bytes() for p in first[0]]
    assert pictures[0] != pictures[1]
    assert pictures == [Path(p).read_bytes() for p in again[0]]
    assert "Reward" in first[1]
    assert "Judge" in first[2]
    with pytest.raises(Exception, match="Expected a prompt"):
        client.predict(**(options | {"prompt": "  "}), api_name="/compare")
    client.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on PATH")
def test_the_page_in_a_browser(address: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 850})
            page.goto(address)
            page.locator("#compare-run").click()
            page.locator("#compare-base", has_text="Reward").wait_for(timeout=120_000)
            assert page.locator("#compare-slider img").count() == 2
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
