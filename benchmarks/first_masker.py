"""Choose the settings of the bundled masker on validation loss, and train it.

    python benchmarks/first_masker.py --sweep           # short runs of every variant: docs/results/first_masker.json
    python benchmarks/first_masker.py --train FOLDER    # the run whose masker is shipped

Variants are compared by the paired gain in validation loss (base minus masked, same pictures, noise and timesteps), which
sees an effect long before pictures do. No test prompt is looked at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.shapes_masker import MASK, TRAIN, train_masker
from machine import machine
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.maskers import MaskGeneratorConfig

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "first_masker.json"
VARIANTS = {
    "logit 2, Gumbel, 2e-3": (MaskGeneratorConfig(initial_logit=2.0), {"gumbel": True, "learning_rate": 2e-3}),
    "logit 1, threshold, 2e-3": (MaskGeneratorConfig(initial_logit=1.0), {"gumbel": False, "learning_rate": 2e-3}),
    "logit 0.3, threshold, 1e-3": (MaskGeneratorConfig(initial_logit=0.3), {"gumbel": False, "learning_rate": 1e-3}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    pipe = zoo.load("shapes")
    if args.sweep:
        found = []
        for name, (mask, changes) in VARIANTS.items():
            config = replace(TRAIN, max_train_steps=args.steps, validation_steps=50, lr_warmup_steps=10, **changes)
            with tempfile.TemporaryDirectory() as folder:
                run = train_masker(pipe, Path(folder), mask=mask, config=config, pool=4000)
            curve = [entry for entry in run.stats if "gain" in entry]
            found.append({"variant": name, "mask": asdict(mask), "train": asdict(config), "curve": curve})
            print(name, *(f"{c['step']}: {c['gain']:+.5f} +- {c['gain_ci95']:.5f}, {c['density']:.4f}" for c in curve))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"variants": found, "machine": machine()}, indent=1) + "\n")
    if args.train is not None:
        run = train_masker(pipe, args.train, mask=MASK, config=TRAIN)
        print(run.stats[-1])


if __name__ == "__main__":
    main()
