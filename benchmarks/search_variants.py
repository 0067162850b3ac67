"""Settings of the search on validation prompts, beside plain sampling and best of 4; the default was chosen from these.

    python benchmarks/search_variants.py      # two hours on one core; writes docs/results/search_variants.json
    python benchmarks/search_variants.py --only "steps 6-10" --seeds 3 --no-write     # some of them, more noises

Finished cells are kept in runs/search_variants.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from machine import machine
from maskunet.allocator import keep_freed_memory
from maskunet.reproduce.search import METHODS, Method, SearchStudy, best_then_masks, masks, run_study
from maskunet.searching import rivals

STUDY = SearchStudy(seeds=1, prompts=120, split="val", batch_size=60, reference_pictures=600)
#: Iterations, spread over the 15 steps.
EARLY, FIRST, MIDDLE = (4, 0, 0), (8, 0, 0, 0, 0), (0, 4, 0)
SECOND = (0,) * 2 + (4,) * 5 + (0,) * 8
ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"
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
    "best of 4, then steps 1-5, rate 0.3": best_then_masks(
        count=4, iterations=EARLY, learning_rate=0.3, initial_logit=2.0
    ),
}
VARIANTS = REFERENCE | LAYERS | BUDGETS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("runs/search_variants"), help="folder of finished cells")
    parser.add_argument("--only", nargs="+", help="variants whose names hold one of these texts, beside the reference")
    parser.add_argument("--seeds", type=int, default=STUDY.seeds, help="sets of starting noises")
    parser.add_argument("--no-write", action="store_true", help="leave docs/results alone")
    args = parser.parse_args()
    keep_freed_memory()
    chosen = {n: m for n, m in VARIANTS.items() if not args.only or any(x in n for x in args.only)}
    result = run_study(args.work, replace(STUDY, seeds=args.seeds), REFERENCE | chosen, say=partial(print, flush=True))
    if args.no_write:
        return
    path = Path(__file__).parents[1] / "docs" / "results" / "search_variants.json"
    path.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
