"""Which method gains what on which world: a short run each, and what it does to pictures of the first world.

    python benchmarks/what_can_gain.py

Prints the paired gain in loss on 1,024 held-out pictures of the training world, and the share of right pictures on 300
validation prompts of `shapes`, one picture each; one run each, seed 0. Writes docs/results/what_can_gain.json.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import maskunet as mu
from machine import machine
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.metrics.geneval_rules import check
from maskunet.sampling import generate
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import held_out_prompts
from maskunet.training import build_method
from maskunet.zoo.dataset import HELD_OUT_SEED, POOL, TRAIN_SEED, encode_scenes, scenes_of

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "what_can_gain.json"
RUNS = (
    ("full", "shapes", 5e-5),
    ("full", "shapes-art", 5e-5),
    ("lora", "shapes-art", 3e-4),
    ("mask", "shapes-art", 1e-3),
)


def accuracy(pipe) -> float:
    prompts = held_out_prompts(300, "val")
    options = {"seeds": 9000, "guidance_scale": 4.0, "batch_size": 100, "progress": False}
    pictures = generate(pipe, [p.prompt for p in prompts], **options).tensor
    return sum(check(d, p.metadata()) is None for d, p in zip(judge(pictures), prompts)) / len(prompts)


def main() -> None:
    keep_freed_memory()
    base = zoo.load("shapes")
    found = [{"method": "base", "accuracy": accuracy(base)}]
    for name, world, rate in RUNS:
        data, held_out = (
            encode_scenes(base, *scenes_of(world, count, seed))
            for count, seed in ((POOL, TRAIN_SEED), (1024, HELD_OUT_SEED))
        )
        pipe = copy.deepcopy(base)
        config = mu.TrainConfig(max_train_steps=300, learning_rate=rate, snr_gamma=5.0, gumbel=False)
        method = build_method(name, pipe, mu.MaskGeneratorConfig(initial_logit=0.3), gumbel=False)
        with tempfile.TemporaryDirectory() as folder:
            run = mu.train(pipe, method, data, config, folder, validation=held_out)
            if name == "lora":
                pipe.load_lora_weights(Path(folder) / "lora")
        if name == "mask":
            mu.attach(pipe, run.masker)
        found.append({"method": name, "world": world, "rate": rate, **run.stats[-1], "accuracy": accuracy(pipe)})
        print(found[-1], flush=True)
    RESULTS.write_text(json.dumps({"runs": found, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
