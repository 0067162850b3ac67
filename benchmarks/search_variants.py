"""A first look at settings of the search on validation prompts, beside plain sampling and best of 4.

    python benchmarks/search_variants.py      # about ten minutes on two cores; writes docs/results/search_variants.json

Finished cells are kept in runs/search_variants.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from machine import machine
from maskunet.allocator import keep_freed_memory
from maskunet.reproduce.search import METHODS, SearchStudy, masks, run_study
from maskunet.searching import rivals

EARLY = {"halves": "conditional", "iterations": (4, 4, 4, 4, 4, 0)}
STUDY = SearchStudy(seeds=1, prompts=120, split="val", batch_size=60, reference_pictures=600)
VARIANTS = {
    "plain": METHODS["plain"],
    "best of 4": partial(rivals.best_of_n, count=4),
    "early, rate 0.1, logits 1, drawn": masks(**EARLY, learning_rate=0.1, initial_logit=1.0),
    "early, rate 0.1, logits 0, threshold": masks(**EARLY, learning_rate=0.1, initial_logit=0.0, gumbel=False),
    "early, rate 0.03, logits 2, drawn": masks(**EARLY, learning_rate=0.03, initial_logit=2.0),
}


def main() -> None:
    keep_freed_memory()
    result = run_study(Path("runs/search_variants"), STUDY, VARIANTS, say=print)
    path = Path(__file__).parents[1] / "docs" / "results" / "search_variants.json"
    path.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
