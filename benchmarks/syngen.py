"""SynGen on the bundled model's held-out prompts: plain sampling, SynGen, the masker, and both, by the judge.

    python -m benchmarks.syngen      # half an hour on one core; docs/results/syngen.{json,md}
    python -m benchmarks.syngen --split val --resolutions 4 8     # three quarters of an hour; syngen_validation.{json,md}

The default scale and resolution were selected on validation prompts. Sides named "entities" also separate shapes without a
colour. All sides start from the same noise: differences to the first side are paired by prompt and noise, intervals are over
distinct prompts. Finished cells are saved in runs/syngen.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.records import OLD_BOOTSTRAP, RESULTS, machine_line, markdown_table, save_record, without_chance_task
from benchmarks.studies import rivals
from benchmarks.studies.report import CHANCE_NOTE
from benchmarks.studies.world import cached_cell, match_prompts
from maskunet import attach, detach, load, zoo
from maskunet.allocator import keep_freed_memory
from maskunet.evaluation.scores import Score, Scores
from maskunet.machine import machine
from maskunet.metrics.intervals import Changes
from maskunet.relaxation import derive_seed
from maskunet.sampling import Side
from maskunet.shapes.scenes import Prompt, held_out_prompts
from maskunet.shapes.vocabulary import TASKS
from maskunet.syngen import shapes_phrases, syngen_side
from maskunet.zoo.defaults import CHANCE_TASK

#: Tasks with two words to bind or to separate.
BINDING = ("two_object", "colors", "position", "color_attr")


@dataclass(frozen=True)
class Setup:
    """One side of the comparison.

    Args:
        with_masker: attach the bundled masker.
        settings: settings of the side, as JSON values.
        side: maps prompts and seeds to images.
    """

    with_masker: bool
    settings: dict[str, Any]
    side: Side


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60, help="prompts per task")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="val to select settings")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=BINDING)
    parser.add_argument("--seeds", type=int, default=3, help="images per prompt")
    parser.add_argument("--scales", type=float, nargs="+", default=[5.0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--batch-size", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/syngen"), help="folder of finished cells")
    parser.add_argument("--output", type=Path, help="docs/results/syngen.json, or syngen_validation.json")
    args = parser.parse_args()
    name = "syngen" if args.split == "test" else "syngen_validation"
    args.output = args.output or RESULTS / f"{name}.json"
    return args


def build_setups(pipe: Any, args: argparse.Namespace) -> dict[str, Setup]:
    """Return the sides by name."""
    shared = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    setups: dict[str, Setup] = {}
    for with_masker in (False, True):
        suffix = " + masker" if with_masker else ""
        name = "masker" if with_masker else "plain"
        setups[name] = Setup(with_masker, shared, partial(rivals.plain, pipe, **shared))
        for entities in (False, True):
            for scale in args.scales:
                for resolution in args.resolutions:
                    options = shared | {"scale": scale, "resolution": resolution}
                    side = syngen_side(pipe, phrases=partial(shapes_phrases, entities=entities), **options)
                    name = f"syngen{' entities' if entities else ''}"
                    if len(args.scales) * len(args.resolutions) > 1:
                        name += f" {scale:g} at {resolution}"
                    setups[name + suffix] = Setup(with_masker, options | {"entities": entities}, side)
    return setups


def measure(side: Side, prompts: list[Prompt], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the verdicts on one image per prompt, and the time."""
    texts = [p.prompt for p in prompts]
    seeds = [derive_seed("syngen", args.split, seed, i) % 2**31 for i in range(len(texts))]
    start, correct = time.monotonic(), []
    for first in range(0, len(texts), args.batch_size):
        rows = slice(first, first + args.batch_size)
        correct += match_prompts(side(texts[rows], seeds[rows]), prompts[rows])
    return {"correct": [int(c) for c in correct], "seconds": time.monotonic() - start}


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown: one row per side, one column per task."""
    scores, config = record["scores"], record["study"]
    sides, tasks = list(record["seconds"]), [name for name in scores if not name.startswith("overall")]
    rows, is_over_distinct = [], "verdicts" in record
    for side in sides:
        difference = scores["overall"].get(f"{side} - {sides[0]}")
        paired = changes = None
        if difference is not None:
            paired = f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        if difference is not None and is_over_distinct:
            changes = str(Changes(difference["mended"], difference["spoilt"], difference["p"]))
        by_task = {name: scores[name][side]["value"] for name in tasks}
        means = [scores["overall"][side]["value"], without_chance_task(by_task)]
        rows.append([side, *(f"{value:.3f}" for value in (*by_task.values(), *means)), paired, changes])
    brackets = "95 % over distinct prompts" if is_over_distinct else OLD_BOOTSTRAP
    header = ["side", *tasks, "overall", "without position", f"overall minus {sides[0]}", "mended, spoilt"]
    return (
        f"{config['prompts']} {config['split']} prompts per task, {config['seeds']} noises each, {config['steps']} DDIM "
        f"steps, guidance {config['guidance_scale']:g}; share of images that match their prompt. Differences are paired by "
        f"prompt and noise; brackets: {brackets}. {CHANCE_NOTE} {machine_line(record['machine'])}.\n\n"
        + (
            markdown_table(header, rows)
            if is_over_distinct
            else markdown_table(header[:-1], [row[:-1] for row in rows])
        )
    )


def main() -> None:
    args = parse_arguments()
    keep_freed_memory()
    pipe = zoo.load("shapes", device=args.device)
    masker = load("shapes-masker")
    # The tasks alternate, so that each has as many prompts.
    prompts = [p for p in held_out_prompts(args.prompts * len(TASKS), args.split) if p.task in args.tasks]
    scores: dict[str, list[Score]] = {}
    seconds: dict[str, list[float]] = {}
    folder = args.work / (f"{'-'.join(args.tasks)}-{args.prompts}" + ("" if args.split == "val" else f"-{args.split}"))
    for name, setup in build_setups(pipe, args).items():
        attach(pipe, masker) if setup.with_masker else detach(pipe)
        scores[name], seconds[name] = [], []
        for seed in range(args.seeds):
            path = folder / f"{name.replace(' ', '-')}-{seed}.json"
            run = partial(measure, setup.side, prompts, seed, args)
            cell = cached_cell(path, run, json.dumps(setup.settings, sort_keys=True))
            pairs = zip(prompts, cell["correct"], strict=True)
            scores[name] += [Score(i, p.task, float(c), p.prompt) for i, (p, c) in enumerate(pairs)]
            seconds[name].append(cell["seconds"])
            print(
                f"{name}, seed {seed}: {sum(cell['correct'])} of {len(prompts)}, {cell['seconds']:.0f} s", flush=True
            )
    result = Scores.gather(scores, without=CHANCE_TASK)
    record = {
        "study": {k: v for k, v in vars(args).items() if k not in ("work", "output")},
        "scores": result.to_dict(),
        "seconds": seconds,
        # One digit per image in the order of the prompts, so that intervals can be computed again.
        "verdicts": {
            side: "".join(f"{value:.0f}" for value in values.tolist()) for side, values in result.each.items()
        },
        "minus masker": {
            side: {task: vars(result.gain(side, "masker", task)) for task in result.task_names}
            | {"overall": vars(result.gain(side, "masker"))}
            for side in result.values
            if side.endswith(" + masker")
        },
        "machine": machine(),
    }
    print(table(record))
    save_record(record, args.output, f"SynGen with and without the masker, {args.split} prompts", table(record))


if __name__ == "__main__":
    main()
