"""Response time of `maskunet ui`: seconds from pressing "Compare" to both images.

    python -m benchmarks.page                        # two minutes on two cores; docs/results/ui/page.{json,md}
    python -m benchmarks.page --screenshots FOLDER   # also a screenshot of every tab

Starts the command in an empty folder and drives it in headless Chromium (playwright; chromium on PATH) at desktop and
phone width, with the page's defaults (bundled model and masker, 25 steps). The first press after the start is reported
separately ("first"); every other press has a new seed.
"""

from __future__ import annotations

import argparse
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

from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from maskunet.files import make_folder
from maskunet.machine import machine

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def wait_for_text(page: Any, selector: str, text: str) -> None:
    """Wait until an element contains a text."""
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
    """Press the button and return the seconds until both images and their verdicts are shown."""
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.keyboard.press("Tab")
    start = time.perf_counter()
    page.get_by_role("button", name="Compare", exact=True).click()
    wait_for_text(page, "#compare-note", f"Seed {seed}")
    page.wait_for_function(
        "[...document.querySelectorAll('#compare-slider img')].filter(x => x.complete && x.naturalWidth).length >= 2"
    )
    return time.perf_counter() - start


def save_screenshots(page: Any, width: str, folder: Path) -> None:
    """Use every tab and save a screenshot of it."""

    def save(name: str) -> None:
        page.wait_for_timeout(600)
        page.screenshot(path=folder / f"{name}-{width}.png", full_page=True)

    save("compare")
    page.get_by_role("tab", name="Seeds").click()
    page.get_by_role("button", name="Generate").click()
    wait_for_text(page, "#seeds-note", "Masked")
    save("seeds")
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Search", exact=True).click()
    wait_for_text(page, "#search-status", "Done")
    save("search")
    page.get_by_role("tab", name="Analyses").click()
    page.get_by_role("button", name="Analyse", exact=True).click()
    page.wait_for_selector("#analysis-figure img")
    save("analyses")


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = [
        [
            width,
            f"{s['first_s']:.2f}",
            f"{s['median_s']:.2f} ({s['range_s'][0]:.2f}-{s['range_s'][1]:.2f})",
        ]
        for width, s in record["seconds"].items()
    ]
    text = (
        f'Seconds from pressing "Compare" to both images, {record["settings"]["steps"]} steps, medians of '
        f"{record['settings']['presses']} presses; {machine_line(record['machine'])}."
    )
    return f"{text}\n\n{markdown_table(['width', 'first press', 'later presses (range)'], rows)}"


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=10, help="warm presses per width")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="save a screenshot of every tab here")
    parser.add_argument("--output", type=Path, default=RESULTS / "ui" / "page.json")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("expected chromium or google-chrome on PATH, found none: install one")
    if args.screenshots:
        make_folder(args.screenshots)
    seconds: dict[str, Any] = {}
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
                seconds[width] = {
                    "first_s": round(first, 2),
                    "median_s": round(statistics.median(warm), 2),
                    "range_s": [round(min(warm), 2), round(max(warm), 2)],
                }
                print(width, seconds[width], flush=True)
                if args.screenshots:
                    save_screenshots(page, width, args.screenshots)
                browser.close()
            finally:
                process.terminate()
                process.wait(30)
    settings = {"presses": args.presses, "sizes": SIZES, "steps": 25}
    record = {"settings": settings, "seconds": seconds, "machine": machine()}
    save_record(record, args.output, "Response time of the page", table(record))


if __name__ == "__main__":
    main()
