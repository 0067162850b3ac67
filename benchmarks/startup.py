"""Start-up time: the help, imports, the bundled model, one image.

    python -m benchmarks.startup      # six minutes on two cores; docs/results/startup.{json,md}

Each case is a separate process, as a user starts it; cases alternate. A figure is the median over the rounds, after one
round that fills the disk cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from maskunet.machine import machine

COMMAND = [sys.executable, "-m", "maskunet"]
GENERATE = ["generate", "--prompt", "a red circle", "--steps", "15", "--guidance-scale", "4", "--device", "cpu"]
CASES = {
    "maskunet --help": [*COMMAND, "--help"],
    "import maskunet": [sys.executable, "-c", "import maskunet"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import a pipeline class (diffusers, transformers, torch)": [
        sys.executable,
        "-c",
        "from diffusers import StableDiffusionPipeline",
    ],
    "load the bundled model": [sys.executable, "-c", "from maskunet import zoo; zoo.load('shapes')"],
    "maskunet generate, one image of the bundled model": [*COMMAND, *GENERATE],
    "the same with masks": [*COMMAND, *GENERATE, "--masker", "shapes-masker"],
}


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = [
        [name, f"{case['median_s']:.2f} ({case['range_s'][0]:.2f}-{case['range_s'][1]:.2f})"]
        for name, case in record["cases"].items()
    ]
    text = f"Medians of {record['rounds']} rounds, both cores free; {machine_line(record['machine'])}."
    return f"{text}\n\n{markdown_table(['case', 'seconds (range)'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds + 1):
            for name, words in CASES.items():
                start = time.perf_counter()
                subprocess.run(words, check=True, capture_output=True, cwd=folder)
                if i:
                    times[name].append(time.perf_counter() - start)
    cases = {
        name: {"median_s": round(statistics.median(t), 2), "range_s": [round(min(t), 2), round(max(t), 2)]}
        for name, t in times.items()
    }
    record = {"rounds": args.rounds, "cases": cases, "machine": machine()}
    print(table(record))
    save_record(record, RESULTS / "startup.json", "Start-up time", table(record))


if __name__ == "__main__":
    main()
