"""What it takes until something happens: the help, imports, the bundled model, a picture.

    python benchmarks/startup.py      # a minute on two cores; docs/results/startup.json

Each case is a process of its own, as a user starts it; cases take turns. A figure is the median over rounds, after one
that fills the disk's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "startup.json"
COMMAND = [sys.executable, "-m", "maskunet"]
PICTURE = ["generate", "--prompt", "a red circle", "--steps", "15", "--guidance-scale", "4", "--device", "cpu"]
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
    "maskunet generate, a picture of the bundled model": [*COMMAND, *PICTURE],
    "the same with masks": [*COMMAND, *PICTURE, "--masker", "shapes"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            for name, words in CASES.items():
                start = time.perf_counter()
                subprocess.run(words, check=True, capture_output=True, cwd=folder)
                if number:
                    times[name].append(time.perf_counter() - start)
    cases = {
        name: {"median_s": round(statistics.median(t), 2), "range_s": [round(min(t), 2), round(max(t), 2)]}
        for name, t in times.items()
    }
    for name, found in cases.items():
        print(name, found)
    RESULTS.write_text(json.dumps({"rounds": args.rounds, "cases": cases, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
