"""Can anything gain on these domains? One short run per method, and its effect on images of the first domain.

    python -m benchmarks.what_can_gain      # half an hour on two cores; docs/results/what_can_gain.{json,md}

Measures the paired gain in loss on 1,024 held-out images of the training domain, and the accuracy on 300 validation
prompts of `shapes`, one image each; one run per method, seed 0.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import maskunet as mu
from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from benchmarks.studies.world import match_prompts
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.sampling import generate
from maskunet.shapes.scenes import held_out_prompts
from maskunet.training import build_method
from maskunet.zoo.dataset import encode_world

#: Method, training domain, learning rate.
RUNS = (
    ("full", "shapes", 5e-5),
    ("full", "shapes-art", 5e-5),
    ("lora", "shapes-art", 3e-4),
    ("mask", "shapes-art", 1e-3),
)
STEPS, HELD_OUT, PROMPTS = 300, 1024, 300


def accuracy(pipe: Any) -> float:
    """Return the share of images that match their validation prompt."""
    prompts = held_out_prompts(PROMPTS, "val")
    options = {"seeds": 9000, "guidance_scale": 4.0, "batch_size": 100, "progress": False}
    images = generate(pipe, [p.prompt for p in prompts], **options).tensor
    return sum(match_prompts(images, prompts)) / len(prompts)


def measure(base: Any, name: str, domain: str, rate: float) -> dict[str, Any]:
    """Train one method and return its gain and accuracy."""
    data, held_out = encode_world(base, domain, held_out_samples=HELD_OUT)
    pipe = copy.deepcopy(base)
    config = mu.TrainConfig(max_train_steps=STEPS, learning_rate=rate, snr_gamma=5.0, gumbel=False)
    method = build_method(name, pipe, mu.MaskGeneratorConfig(initial_logit=0.3), gumbel=False)
    with tempfile.TemporaryDirectory() as folder:
        run = mu.train(pipe, method, data, config, folder, validation=held_out)
        if name == "lora":
            pipe.load_lora_weights(Path(folder) / "lora")
    if name == "mask":
        mu.attach(pipe, run.masker)
    return {"method": name, "domain": domain, "rate": rate, **run.stats[-1], "accuracy": accuracy(pipe)}


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = [
        [
            run["method"],
            run.get("domain"),
            f"{run['rate']:g}" if "rate" in run else None,
            f"{run['gain']:.4f} ± {run['gain_ci95']:.4f}" if "gain" in run else None,
            f"{run['density']:.3f}" if run.get("density") is not None else None,
            f"{run['accuracy']:.3f}",
        ]
        for run in record["runs"]
    ]
    header = ["method", "trained on", "rate", "paired gain in loss", "density", "accuracy on `shapes`"]
    text = f"{STEPS} steps, seed 0, one run per method; {machine_line(record['machine'])}."
    return f"{text}\n\n{markdown_table(header, rows)}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    keep_freed_memory()
    base = zoo.load("shapes")
    runs = [{"method": "base", "accuracy": accuracy(base)}]
    for name, domain, rate in RUNS:
        runs.append(measure(base, name, domain, rate))
        print(runs[-1], flush=True)
    record = {"runs": runs, "machine": machine()}
    save_record(record, RESULTS / "what_can_gain.json", "Can anything gain on these domains?", table(record))


if __name__ == "__main__":
    main()
