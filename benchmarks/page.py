"""How soon the page of `maskunet ui` answers a newcomer: seconds from the press of "Compare" to both pictures.

    python benchmarks/page.py       # two minutes on two cores; docs/results/ui: page.json and a picture of every tab

Starts the real command in a folder of its own and drives it in headless Chromium (playwright; chromium on PATH) at desktop
and phone width, with the page's own settings (bundled model and masker, 25 steps). The first press after the start is
reported apart ("first"); the others have a new seed each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ui"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def wait_for_text(page: Any, selector: str, text: str) -> None:
    """Wait until an element says something."""
    page.wait_for_function(
        "([s, t]) => (document.querySelector(s)?.innerText ?? '').includes(t)", arg=[selector, text]
    )


def start(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the page and return its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "maskunet", "ui", "--port", str(port), "--device", "cpu"],
            cwd=home,
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
            stdout=out,
            stderr=out,
        )
    while "page: " not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.2)
    return process, f"http://127.0.0.1:{port}"


def compare(page: Any, seed: int) -> float:
    """Press the button and return the seconds until both pictures and their words are there."""
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.keyboard.press("Tab")
    started = time.perf_counter()
    page.get_by_role("button", name="Compare", exact=True).click()
    wait_for_text(page, "#compare-note", f"Seed {seed}")
    page.wait_for_function(
        "[...document.querySelectorAll('#compare-slider img')].filter(x => x.complete && x.naturalWidth).length >= 2"
    )
    return time.perf_counter() - started


def picture_tabs(page: Any, width: str, folder: Path) -> None:
    """Use every tab and keep a picture of it."""

    def keep(name: str) -> None:
        page.wait_for_timeout(600)
        page.screenshot(path=folder / f"{name}-{width}.png", full_page=True)

    keep("compare")
    page.get_by_role("tab", name="Seeds").click()
    page.get_by_role("button", name="Generate").click()
    wait_for_text(page, "#seeds-note", "Masked")
    keep("seeds")
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Search", exact=True).click()
    wait_for_text(page, "#search-status", "Done")
    keep("search")
    page.get_by_role("tab", name="Analyses").click()
    page.get_by_role("button", name="Analyse", exact=True).click()
    page.wait_for_selector("#analysis-figure img")
    keep("analyses")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=10, help="warm ones, at each width")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("expected chromium or google-chrome on PATH, found none: install one")
    args.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for width, (across, down) in SIZES.items():
        with tempfile.TemporaryDirectory() as home, sync_playwright() as drive:
            process, address = start(Path(home))
            try:
                browser = drive.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_context(viewport={"width": across, "height": down}).new_page()
                page.set_default_timeout(120_000)
                page.goto(address)
                page.wait_for_selector("#compare-run")
                first = compare(page, 1)
                warm = [compare(page, 2 + i) for i in range(args.presses)]
                found[width] = {
                    "first_s": round(first, 2),
                    "median_s": round(statistics.median(warm), 2),
                    "range_s": [round(min(warm), 2), round(max(warm), 2)],
                }
                print(width, found[width], flush=True)
                picture_tabs(page, width, args.output)
                browser.close()
            finally:
                process.terminate()
                process.wait(30)
    settings = {"presses": args.presses, "sizes": SIZES, "steps": 25}
    answer = json.dumps({"settings": settings, "seconds": found, "machine": machine()}, indent=1)
    (args.output / "page.json").write_text(answer + "\n")


if __name__ == "__main__":
    main()
