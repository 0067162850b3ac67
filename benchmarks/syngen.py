"""SynGen on the bundled model's held-out prompts: plain, SynGen, the masker, and both, by the judge.

    python benchmarks/syngen.py      # half an hour on one core; writes docs/results/syngen.json
    python benchmarks/syngen.py --split val --scales 5 20 --resolutions 4 8     # an hour; syngen_validation.json

The default scale and resolution were chosen on validation prompts.

Sides with "entities" also keep shapes without a colour apart. All sides start from the same noise, so differences to the
first side are paired by prompt; intervals are bootstraps over prompts. Finished cells are kept in runs/syngen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies import rivals
from benchmarks.studies.world import cell
from machine import machine
from maskunet import attach, detach, load, zoo
from maskunet.allocator import keep_freed_memory
from maskunet.evaluation import Scores
from maskunet.evaluation.scores import Score
from maskunet.metrics.geneval_rules import check
from maskunet.relaxation import derive_seed
from maskunet.sampling import Side
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import held_out_prompts
from maskunet.shapes.vocabulary import TASKS
from maskunet.syngen import shapes_phrases, syngen_side

#: Tasks in which two words can be bound or told apart.
BINDING = ("two_object", "colors", "position", "color_attr")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=60, help="prompts a task")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="val to choose settings on")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=BINDING)
    parser.add_argument("--seeds", type=int, default=3, help="pictures a prompt")
    parser.add_argument("--scales", type=float, nargs="+", default=[5.0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--batch-size", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/syngen"))
    parser.add_argument("--output", type=Path, help="docs/results/syngen.json, or syngen_validation.json")
    args = parser.parse_args()
    name = "syngen" if args.split == "test" else "syngen_validation"
    args.output = args.output or Path(__file__).parents[1] / "docs" / "results" / f"{name}.json"
    return args


def sides(pipe: Any, args: argparse.Namespace) -> dict[str, tuple[bool, dict[str, Any], Side]]:
    """Whether the masker is attached, the settings and the pipeline_side of each side."""
    shared = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    found: dict[str, tuple[bool, dict[str, Any], Side]] = {}
    for masked in (False, True):
        end = " + masker" if masked else ""
        found["masker" if masked else "plain"] = (masked, shared, partial(rivals.plain, pipe, **shared))
        for entities in (False, True):
            for scale in args.scales:
                for resolution in args.resolutions:
                    own = shared | {"scale": scale, "resolution": resolution}
                    make = syngen_side(pipe, phrases=partial(shapes_phrases, entities=entities), **own)
                    name = f"syngen{' entities' if entities else ''}"
                    if len(args.scales) * len(args.resolutions) > 1:
                        name += f" {scale:g} at {resolution}"
                    found[name + end] = (masked, own | {"entities": entities}, make)
    return found


def main() -> None:
    keep_freed_memory()
    args = arguments()
    pipe = zoo.load("shapes", device=args.device)
    masker = load(zoo.path("shapes-masker"))
    # The tasks alternate, so that this many hold as many of each.
    prompts = [p for p in held_out_prompts(args.prompts * len(TASKS), args.split) if p.task in args.tasks]
    texts = [p.prompt for p in prompts]

    def measured(make: Side, seed: int) -> dict[str, Any]:
        seeds = [derive_seed("syngen", args.split, seed, i) % 2**31 for i in range(len(texts))]
        start, right = time.monotonic(), []
        for first in range(0, len(texts), args.batch_size):
            rows = slice(first, first + args.batch_size)
            found = judge(make(texts[rows], seeds[rows]))
            right += [check(d, p.metadata()) is None for d, p in zip(found, prompts[rows], strict=True)]
        return {"right": right, "seconds": time.monotonic() - start}

    scores: dict[str, list[Score]] = {}
    seconds: dict[str, list[float]] = {}
    chosen = f"{'-'.join(args.tasks)}-{args.prompts}" + ("" if args.split == "val" else f"-{args.split}")
    for name, (masked, settings, make) in sides(pipe, args).items():
        attach(pipe, masker) if masked else detach(pipe)
        scores[name], seconds[name] = [], []
        for seed in range(args.seeds):
            path = args.work / chosen / f"{name.replace(' ', '-')}-{seed}.json"
            run: Callable[[], dict[str, Any]] = partial(measured, make, seed)
            found = cell(path, run, json.dumps(settings, sort_keys=True))
            scores[name] += [Score(i, p.task, float(r)) for i, (p, r) in enumerate(zip(prompts, found["right"]))]
            seconds[name].append(found["seconds"])
            print(f"{name}, seed {seed}: {sum(found['right'])} of {len(texts)}, {found['seconds']:.0f} s")
    table = Scores.gather(scores)
    print(table.to_markdown())
    study = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("work", "output")}
    result = {"study": study, "scores": table.to_dict(), "seconds": seconds}
    result["minus masker"] = {
        side: {task: vars(table.gain(side, "masker", task)) for task in table.task_names}
        | {"overall": vars(table.gain(side, "masker"))}
        for side in table.values
        if side.endswith(" + masker")
    }
    result["machine"] = machine() | {"device": str(torch.device(args.device))}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
