"""Settings of the search on validation prompts, beside plain sampling and best of 4; the default was chosen from these.

    python benchmarks/search_variants.py      # two hours on one core; writes docs/results/search_variants.json
    python benchmarks/search_variants.py --only "a logit" "choice of 5"     # some of them; the others stay as they are

Finished cells are kept in runs/search_variants.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.studies import rivals
from benchmarks.studies import search as study
from benchmarks.studies.search import METHODS, Method, SearchStudy, run_study
from machine import machine
from maskunet import rewards
from maskunet.allocator import keep_freed_memory
from maskunet.metrics.intervals import bootstrap
from maskunet.rewards import Reward, Smoothed
from maskunet.searching import SearchConfig, search
from maskunet.shapes.scenes import held_out_prompts

STUDY = SearchStudy(seeds=1, prompts=120, split="val", batch_size=60, reference_pictures=600)
#: Iterations, spread over the 15 steps.
EARLY, FIRST, MIDDLE = (4, 0, 0), (8, 0, 0, 0, 0), (0, 4, 0)
SECOND = (0,) * 2 + (4,) * 5 + (0,) * 8
ALTERNATE = (0,) * 5 + (2, 0, 2, 0, 2) + (0,) * 5
#: The variants change one thing of the preset "masks".
masks, best_then_masks = (partial(make, preset="masks") for make in (study.masks, study.best_then_masks))
ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"


def smoothed_masks(*, copies: int, **changes: Any) -> Method:
    """Return mask search by the mean of the reward over altered copies of each picture."""
    return partial(_smoothed_masks, copies=copies, config=SearchConfig(compare_base=False, **changes))


def _smoothed_masks(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    copies: int,
    config: SearchConfig,
    **options: Any,
) -> Tensor:
    config = replace(config, **options)
    return search(pipe, prompts, Smoothed(reward, copies), config, seeds=seeds, progress=False).tensor


def with_both(method: Method, weight: float = 3.0) -> Method:
    """Return a method that climbs the study's reward and, weighted, the other bundled one."""
    return partial(_with_both, method=method, weight=weight)


def _with_both(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    method: Method,
    weight: float,
    **options: Any,
) -> Tensor:
    other = "shapes-matching" if reward.name == "shapes" else "shapes"
    return method(pipe, prompts, seeds, reward + weight * rewards.load(other), **options)


def at_steps(method: Method, steps: int) -> Method:
    """Return a method at another number of denoising steps."""
    return partial(_at_steps, method=method, steps=steps)


def _at_steps(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    method: Method,
    steps: int,
    **options: Any,
) -> Tensor:
    return method(pipe, prompts, seeds, reward, **(options | {"num_inference_steps": steps}))


REFERENCE: dict[str, Method] = {
    "plain": METHODS["plain"],
    "best of 4": partial(rivals.best_of_n, count=4),
    "steps 6-10, rate 0.3, logits 2": masks(iterations=MIDDLE, learning_rate=0.3, initial_logit=2.0),
}
#: Which layers are masked.
LAYERS: dict[str, Method] = {
    "cross-attention": masks(targets=rf"up_blocks\..+\.attn2\.{ATTENTION}"),
    "self-attention": masks(targets=rf"up_blocks\..+\.attn1\.{ATTENTION}"),
    "values and outputs": masks(targets=r"up_blocks\..+\.(to_v|to_out\.0)"),
    "all attention of the U-Net": masks(targets=rf".+\.{ATTENTION}"),
    "cross-attention of the U-Net, steps 1-5": masks(targets=rf".+\.attn2\.{ATTENTION}", iterations=EARLY),
}
#: Rates, starts and budgets, the first look.
BUDGETS: dict[str, Method] = {
    "steps 1-5, rate 0.1, logits 1": masks(iterations=EARLY, learning_rate=0.1, initial_logit=1.0),
    "steps 1-5, rate 0.1, logits 2": masks(iterations=EARLY, learning_rate=0.1, initial_logit=2.0),
    "steps 1-5, rate 0.03, logits 1": masks(iterations=EARLY, learning_rate=0.03, initial_logit=1.0),
    "steps 1-5, rate 0.3, logits 2": masks(iterations=EARLY, learning_rate=0.3, initial_logit=2.0),
    "steps 1-5, rate 1, logits 2": masks(iterations=EARLY, learning_rate=1.0, initial_logit=2.0),
    "steps 1-3, K 8, rate 0.3, logits 2": masks(iterations=FIRST, learning_rate=0.3, initial_logit=2.0),
    "steps 3-7, rate 0.3, logits 2": masks(iterations=SECOND, learning_rate=0.3, initial_logit=2.0),
    "steps 6-10, K 2, rate 0.3, logits 2": masks(iterations=(0, 2, 0), learning_rate=0.3, initial_logit=2.0),
    "best of 4, then steps 1-5, rate 0.3": best_then_masks(
        count=4, iterations=EARLY, learning_rate=0.3, initial_logit=2.0
    ),
}
#: What the reward is shown: the end of a short roll-out. Fewer iterations, since calls cost.
ROLLOUTS: dict[str, Method] = {
    "roll-out of 1, K 2": masks(iterations=(0, 2, 0), rollout=1),
    "roll-out of 3, steps 6, 8 and 10, K 2": masks(iterations=ALTERNATE, rollout=3),
    "roll-out of 3, straight gradient, K 2": masks(iterations=(0, 2, 0), rollout=3, rollout_gradient="straight"),
    "roll-out of 3, steps 2-4, K 2": masks(iterations=(0, 2, 2, 2) + (0,) * 11, rollout=3),
}
#: What has a logit of its own, and where logits start.
STRUCTURES: dict[str, Method] = {
    "a logit a row": masks(structure="row"),
    "a logit a column": masks(structure="column"),
    "a logit a row and a column": masks(structure="rows-and-columns"),
    "a logit a layer": masks(structure="layer"),
    "whole rows, by threshold": masks(structure="row", gumbel=False, initial_logit=0.3),
    "logits spread by 1": masks(initial_spread=1.0),
}
#: Means against what pleases one network by chance; at about the default's compute, so with fewer iterations.
MEANS: dict[str, Method] = {
    "3 draws an iterate, K 1": masks(iterations=(0, 1, 0), draws=3),
    "4 altered copies, K 2": smoothed_masks(copies=4, iterations=(0, 2, 0)),
}
#: Random masks, the best kept, without gradient.
CHOICES: dict[str, Method] = {
    "choice of 8, steps 6-10": masks(ascend=False, iterations=(0, 7, 0), initial_logit=1.0),
    "choice of 5, steps 1-3, roll-out of 3": masks(
        ascend=False, iterations=(4,) * 3 + (0,) * 12, initial_logit=1.0, rollout=3
    ),
    "choice of 16 at step 1, roll-out of 3, logits 0": masks(
        ascend=False, iterations=(15,) + (0,) * 14, initial_logit=0.0, rollout=3
    ),
}
#: How greedily particles are resampled; rewards differ in scale.
PARTICLES: dict[str, Method] = {
    f"particles, 4, lambda {scale:g}": partial(rivals.particles, count=4, scale=scale) for scale in (1.0, 3.0, 10.0)
}
#: Noises chosen by their drafts, alone and with masks after; all but the last at about the compute of best of 6.
DRAFTS: dict[str, Method] = {
    "best of 6": partial(rivals.best_of_n, count=6),
    "11 drafts": masks(candidates=11, iterations=0),
    "7 drafts, then masks at steps 6-8, K 2": masks(candidates=7, iterations=(0, 0, 2, 0, 0)),
    "5 drafts, then masks at steps 6-10, K 2": masks(candidates=5, iterations=(0, 2, 0)),
    "5 drafts, then a logit a row and a column, K 2": masks(
        candidates=5, iterations=(0, 2, 0), structure="rows-and-columns"
    ),
    "11 drafts, then masks at steps 6-10": masks(candidates=11),
}
#: A second reward beside the first, and more steps.
BESIDE: dict[str, Method] = {
    "best of 6, by both rewards": with_both(partial(rivals.best_of_n, count=6)),
    "masks, by both rewards": with_both(masks()),
    "plain, 30 steps": at_steps(METHODS["plain"], 30),
    "masks, 30 steps, K 2": at_steps(masks(iterations=(0, 2, 0)), 30),
}
NOTE = (
    "time is not recorded: other work ran beside it; cells without minus_plain are an earlier run's, which kept no verdict "
    "of each prompt, and four of them were made before the referee"
)
#: What of a cell is written down; time is not, where other work runs beside.
KEPT = ("n", "reward", "referee", "accuracy", "fid", "forwards")
VARIANTS = REFERENCE | BUDGETS | LAYERS | ROLLOUTS | STRUCTURES | MEANS | CHOICES | PARTICLES | DRAFTS | BESIDE


def minus_plain(cell: dict[str, Any], plain: dict[str, Any]) -> dict[str, list[float]]:
    """Differences to plain sampling, paired by prompt and noise, each with its 95 % interval; tasks weigh alike."""
    tasks = [p.task for p in held_out_prompts(STUDY.prompts, STUDY.split)]
    groups = [torch.tensor([i for i, t in enumerate(tasks) if t == task]) for task in dict.fromkeys(tasks)]
    found = {}
    for name, key in (("reward", "reward"), ("referee", "referee"), ("overall", "right")):
        ours, theirs = (torch.tensor(c["each"][key], dtype=torch.float) for c in (cell, plain))
        estimate = bootstrap(ours - theirs, groups)
        found[name] = [round(x, 4) for x in (estimate.value, estimate.low, estimate.high)]
    return found


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown table of all variants; what the first look did not keep is left empty."""
    lines = [
        "| variant | forwards | reward | referee | overall | minus plain |",
        "|---|---|---|---|---|---|",
    ]
    for name, made in cells.items():
        for cell in made:
            value, low, high = cell.get("minus_plain", {}).get("overall", [None] * 3)
            paired = "" if value is None or name == "plain" else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            referee = f"{cell['referee']:.3f}" if "referee" in cell else ""
            overall = f"{cell['accuracy']['overall']:.3f}"
            lines.append(
                f"| {name} | {cell['forwards']:.0f} | {cell['reward']:.3f} | {referee} | {overall} | {paired} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("runs/search_variants"), help="folder of finished cells")
    parser.add_argument("--only", nargs="+", help="variants by name, or by a part of it, beside the reference")
    parser.add_argument("--seeds", type=int, default=STUDY.seeds, help="sets of starting noises")
    parser.add_argument("--reward", default="shapes", help="what methods see: shapes or shapes-matching")
    parser.add_argument("--no-write", action="store_true", help="leave docs/results alone")
    args = parser.parse_args()
    keep_freed_memory()
    chosen = REFERENCE | {
        n: m for x in args.only or [""] for n, m in VARIANTS.items() if (n == x if x in VARIANTS else x in n)
    }
    result = run_study(
        args.work, replace(STUDY, seeds=args.seeds, reward=args.reward), chosen, say=partial(print, flush=True)
    )
    cells = {
        name: [
            {k: v for k, v in cell.items() if k in KEPT} | {"minus_plain": minus_plain(cell, plain)}
            for cell, plain in zip(made, result["cells"]["plain"], strict=True)
        ]
        for name, made in result["cells"].items()
    }
    path = Path(__file__).parents[1] / "docs" / "results" / "search_variants.json"
    if args.reward != "shapes":
        path = path.with_stem(f"search_variants_{args.reward}")
    if args.only and path.exists() and not args.no_write:  # the others stay as they were measured
        cells = json.loads(path.read_text())["cells"] | cells
    cells = {name: cells[name] for name in VARIANTS if name in cells}
    print(table(cells))
    if not args.no_write:
        path.write_text(json.dumps(result | {"note": NOTE, "cells": cells, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
