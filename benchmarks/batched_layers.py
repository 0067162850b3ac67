"""Layers of equal shape: their masks in one batched product, or layer by layer, each used at once.

    python benchmarks/batched_layers.py      # a minute; docs/results/batched_layers.json

Four layers (C, C) of a block at the widths of SD 1.5, two samples, random factors: logits of rank 16 (low rank) and of
rank C / 4 (the paper's), threshold, product with the frozen weight. Sides take turns in one run; a ratio is the median of
ratios within a round; memory is that of the masks that live at once. The masks of both sides are compared first.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from machine import machine
from maskunet.allocator import keep_freed_memory

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "batched_layers.json"
LAYERS, BATCH, ROUNDS = 4, 2, 15


def masked(u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Return masked weights of factors (..., C, r) and weights that broadcast."""
    logits = u @ v.mT
    return weight * (logits >= 0)


def one_by_one(u: Tensor, v: Tensor, weights: Tensor, x: Tensor) -> list[Tensor]:
    return [x @ masked(u[i], v[i], weights[i]).mT for i in range(LAYERS)]


def together(u: Tensor, v: Tensor, weights: Tensor, x: Tensor) -> list[Tensor]:
    return list(x @ masked(u, v, weights[:, None]).mT)


@torch.inference_mode()
def main() -> None:
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    found = []
    for width, tokens in ((320, 4096), (640, 1024), (1280, 256)):
        for name, rank in (("low-rank", 16), ("paper", width // 4)):
            u = torch.randn(LAYERS, BATCH, width, rank, generator=generator)
            v = torch.randn(LAYERS, BATCH, width, rank, generator=generator)
            weights = torch.randn(LAYERS, width, width, generator=generator)
            x = torch.randn(BATCH, tokens, width, generator=generator)
            pairs = zip(one_by_one(u, v, weights, x), together(u, v, weights, x), strict=True)
            difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
            ratios, alone = [], []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                one_by_one(u, v, weights, x)
                middle = time.perf_counter()
                together(u, v, weights, x)
                alone.append(middle - started)
                ratios.append((time.perf_counter() - middle) / alone[-1])
            found.append(
                {
                    "width": width,
                    "form": name,
                    "one_by_one_s": round(statistics.median(alone), 4),
                    "together_over_one_by_one": round(statistics.median(ratios), 3),
                    "range": [round(min(ratios), 3), round(max(ratios), 3)],
                    "masks_mib_one_by_one": round(BATCH * width * width * 4 / 2**20, 1),
                    "masks_mib_together": round(LAYERS * BATCH * width * width * 4 / 2**20, 1),
                    "relative_difference": difference,
                }
            )
            print(found[-1], flush=True)
    settings = {"layers": LAYERS, "batch": BATCH, "rounds": ROUNDS, "seed": 0}
    RESULTS.write_text(json.dumps({"settings": settings, "rows": found, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
