"""What it costs in quality to make masks anew only every k steps: pictures of the bundled model, judged.

    python benchmarks/held_masks.py                                    # writes docs/results/held_masks.json
    python benchmarks/held_masks.py --masker runs/a/masker --prompts 120

Every side draws the same prompts from the same noise; differences to masks made at every step are paired by prompt, with
95 % bootstrap intervals. FID is to real pictures in the bundled CLIP's features.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import maskunet as mu
from benchmarks.studies.world import Sampling, World
from machine import machine
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.maskers import HeldMasks
from maskunet.metrics.distances import frechet_distance
from maskunet.metrics.geneval_rules import check
from maskunet.metrics.intervals import bootstrap
from maskunet.sampling import generate
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import held_out_prompts

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "held_masks.json"
SIDES = {
    "every step": None,
    **{f"every {k} steps": {"every": k} for k in (2, 4, 8, 25)},
    **{f"moved by {e:g}": {"tolerance": e} for e in (0.1, 0.2, 0.4)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masker", default="shapes-masker")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    keep_freed_memory()
    pipe = zoo.load("shapes")
    masker = mu.load(zoo.path(args.masker) if args.masker == "shapes-masker" else args.masker, pipe)
    world = World(pipe, Sampling(args.steps, 4.0), 2400)
    prompts = held_out_prompts(args.prompts, "test")
    texts = [p.prompt for p in prompts]
    first, sides = None, {}
    for name, settings in SIDES.items():
        held = masker if settings is None else HeldMasks(masker, **settings)
        mu.attach(pipe, held)
        started = time.perf_counter()
        options = {"num_inference_steps": args.steps, "guidance_scale": 4.0, "batch_size": 100, "progress": False}
        made = generate(pipe, texts, seeds=0, **options)
        seconds = time.perf_counter() - started
        right = torch.tensor([check(d, p.metadata()) is None for d, p in zip(judge(made), prompts)]).float()
        first = (made, right) if first is None else first
        calls = args.steps * -(-args.prompts // 100) * len(masker.network.blocks)
        difference = bootstrap(right - first[1], [torch.arange(len(right))])
        sides[name] = {
            "made_anew": 1.0 if settings is None else held.renewals / calls,
            "right": float(right.mean()),
            "right_minus_every_step": [difference.value, difference.low, difference.high],
            "fid": frechet_distance(world.features(made)["clip"], world.real["test"]["clip"]),
            "mean_pixel_change": float((made - first[0]).abs().mean()),
            "seconds": round(seconds, 1),
        }
        print(name, sides[name], flush=True)
    settings = {"masker": args.masker, "n": args.prompts, "steps": args.steps, "seed": 0}
    args.output.write_text(json.dumps(settings | {"sides": sides, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
