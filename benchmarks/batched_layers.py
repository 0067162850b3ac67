"""Layers of equal shape: one batched product for all masks, or one layer after the other.

    python -m benchmarks.batched_layers      # a minute; docs/results/batched_layers.{json,md}

Four layers (C, C) of a block at the widths of SD 1.5, two samples, random factors: logits of rank 16 (low rank) and of
rank C / 4 (the paper's), threshold, product with the frozen weight. Sides alternate in one run; a ratio is the median of
the ratios within a round; memory is that of all masks alive at once. The masks of both sides are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine

LAYERS, BATCH, ROUNDS = 4, 2, 15
SIZES = ((320, 4096), (640, 1024), (1280, 256))  # width, tokens


def masked_weight(u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Return masked weights of factors (..., C, r) and weights that broadcast."""
    logits = u @ v.mT
    return weight * (logits >= 0)


def one_by_one(u: Tensor, v: Tensor, weights: Tensor, x: Tensor) -> list[Tensor]:
    return [x @ masked_weight(u[i], v[i], weights[i]).mT for i in range(LAYERS)]


def batched(u: Tensor, v: Tensor, weights: Tensor, x: Tensor) -> list[Tensor]:
    return list(x @ masked_weight(u, v, weights[:, None]).mT)


def measure(width: int, tokens: int, form: str, rank: int, generator: torch.Generator) -> dict[str, Any]:
    """Return times and memory of both sides for one size."""
    u = torch.randn(LAYERS, BATCH, width, rank, generator=generator)
    v = torch.randn(LAYERS, BATCH, width, rank, generator=generator)
    weights = torch.randn(LAYERS, width, width, generator=generator)
    x = torch.randn(BATCH, tokens, width, generator=generator)
    pairs = zip(one_by_one(u, v, weights, x), batched(u, v, weights, x), strict=True)
    difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        one_by_one(u, v, weights, x)
        middle = time.perf_counter()
        batched(u, v, weights, x)
        seconds.append(middle - start)
        ratios.append((time.perf_counter() - middle) / seconds[-1])
    return {
        "width": width,
        "form": form,
        "one_by_one_s": round(statistics.median(seconds), 4),
        "together_over_one_by_one": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "masks_mib_one_by_one": round(BATCH * width * width * 4 / 2**20, 1),
        "masks_mib_together": round(LAYERS * BATCH * width * width * 4 / 2**20, 1),
        "relative_difference": difference,
    }


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = [
        [
            row["width"],
            row["form"],
            f"{row['one_by_one_s']:.4f}",
            f"{row['together_over_one_by_one']:.3f} ({row['range'][0]:.2f}-{row['range'][1]:.2f})",
            f"{row['masks_mib_one_by_one']:.1f}",
            f"{row['masks_mib_together']:.1f}",
        ]
        for row in record["rows"]
    ]
    header = ["width", "logits", "one by one, s", "batched / one by one", "masks, MiB", "masks batched, MiB"]
    settings = record["settings"]
    text = (
        f"{settings['layers']} layers (C, C), batch {settings['batch']}, medians of {settings['rounds']} rounds; "
        f"{machine_line(record['machine'])}."
    )
    return f"{text}\n\n{markdown_table(header, rows)}"


@torch.inference_mode()
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for width, tokens in SIZES:
        for form, rank in (("low-rank", 16), ("paper", width // 4)):
            rows.append(measure(width, tokens, form, rank, generator))
            print(rows[-1], flush=True)
    settings = {"layers": LAYERS, "batch": BATCH, "rounds": ROUNDS, "seed": 0}
    record = {"settings": settings, "rows": rows, "machine": machine()}
    save_record(record, RESULTS / "batched_layers.json", "Layers of equal shape, batched", table(record))


if __name__ == "__main__":
    main()
