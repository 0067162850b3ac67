"""Settings of the search on validation prompts, beside plain sampling and best of 4; the default was chosen from these.

    python benchmarks/search_variants.py      # half an hour on two cores; writes docs/results/search_variants.json

Finished cells are kept in runs/search_variants.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from machine import machine
from maskunet.allocator import keep_freed_memory
from maskunet.reproduce.search import METHODS, SearchStudy, best_then_masks, masks, run_study
from maskunet.searching import rivals

STUDY = SearchStudy(seeds=1, prompts=120, split="val", batch_size=60, reference_pictures=600)
#: Iterations, spread over the 15 steps.
EARLY, FIRST, MIDDLE = (4, 0, 0), (8, 0, 0, 0, 0), (0, 4, 0)
SECOND = (0,) * 2 + (4,) * 5 + (0,) * 8
VARIANTS = {
    "plain": METHODS["plain"],
    "best of 4": partial(rivals.best_of_n, count=4),
    "steps 1-5, rate 0.1, logits 1": masks(iterations=EARLY, learning_rate=0.1, initial_logit=1.0),
    "steps 1-5, rate 0.1, logits 2": masks(iterations=EARLY, learning_rate=0.1, initial_logit=2.0),
    "steps 1-5, rate 0.03, logits 1": masks(iterations=EARLY, learning_rate=0.03, initial_logit=1.0),
    "steps 1-5, rate 0.3, logits 2": masks(iterations=EARLY, learning_rate=0.3, initial_logit=2.0),
    "steps 1-5, rate 1, logits 2": masks(iterations=EARLY, learning_rate=1.0, initial_logit=2.0),
    "steps 1-3, K 8, rate 0.3, logits 2": masks(iterations=FIRST, learning_rate=0.3, initial_logit=2.0),
    "steps 3-7, rate 0.3, logits 2": masks(iterations=SECOND, learning_rate=0.3, initial_logit=2.0),
    "steps 6-10, rate 0.3, logits 2": masks(iterations=MIDDLE, learning_rate=0.3, initial_logit=2.0),
    "best of 4, then steps 1-5, rate 0.3": best_then_masks(
        count=4, iterations=EARLY, learning_rate=0.3, initial_logit=2.0
    ),
}


def main() -> None:
    keep_freed_memory()
    result = run_study(Path("runs/search_variants"), STUDY, VARIANTS, say=print)
    path = Path(__file__).parents[1] / "docs" / "results" / "search_variants.json"
    path.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
