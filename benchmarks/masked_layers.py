"""Time of one layer at Stable Diffusion 1.5's sizes: plain, with dense masks, and with each operator of the library.

    python -m benchmarks.masked_layers                                               # CPU: tiles; two minutes
    python -m benchmarks.masked_layers --device cuda --dtype float16 --repeats 20    # GPU: Triton kernels
    python -m benchmarks.masked_layers --compile             # also the reference under torch.compile; five minutes

Outputs and gradients of every size are compared first. Sides alternate within a repeat; a side's figure is the median over
the repeats of a forward ("infer") and of a forward with its backward ("train"). Writes docs/results/masked_layers.{json,md},
one entry per device and dtype.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.records import RESULTS, machine_line, markdown_table, read_record, save_record
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.operators import factored_linear, masked_linear, pack_bits, packed_linear, using
from maskunet.relaxation import THRESHOLD, threshold

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
BATCH, RANK = 2, 16
WARM_UP = 3  # repeats
#: Width and tokens of the decoder's layers, the bottom one, and keys and values of cross-attention.
SIZES = ((1280, 64), (1280, 256), (1280, 77), (640, 1024), (640, 77), (320, 4096), (320, 77))


def milliseconds(call: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _key(side: str, kind: str) -> str:
    return f"{side.replace(', ', '_')}_{kind}_ms"


def relative_difference(values: torch.Tensor, expected: torch.Tensor) -> float:
    return ((values.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def with_operator(call: Callable[[], torch.Tensor], implementation: str) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with using(implementation):
            return call()

    return run


def measure(
    width: int, tokens: int, device: str, dtype: torch.dtype, repeats: int, tolerance: float, compiled: bool
) -> dict:
    weight = torch.randn(width, width, device=device, dtype=dtype) / width**0.5
    bias = torch.randn(width, device=device, dtype=dtype)
    x = torch.randn(BATCH, tokens, width, device=device, dtype=dtype, requires_grad=True)
    left = (torch.randn(BATCH, width, RANK, device=device) / RANK**0.5).requires_grad_()
    right = torch.randn(width, RANK, device=device, requires_grad=True)
    row = torch.randn(width, device=device, requires_grad=True)
    factors = (left, right, row)
    with torch.no_grad():
        logits = left @ right.T + row
        packed = pack_bits(logits >= THRESHOLD)
        undecided = ((logits - THRESHOLD).abs() < 1e-5).sum().item()  # rounding may flip these masks
    upstream = torch.randn_like(x)
    fast = "tiled" if device == "cpu" else "triton"
    sides = {
        "plain": lambda: F.linear(x, weight, bias),
        "dense": lambda: masked_linear(x, weight, bias, threshold(left @ right.T + row)),
    }
    for name in ("reference", fast):
        sides[f"factored, {name}"] = with_operator(lambda: factored_linear(x, weight, bias, *factors), name)
        sides[f"packed, {name}"] = with_operator(lambda: packed_linear(x, weight, bias, packed, BATCH), name)
    if compiled:
        torch.compiler.reset()
        plain = torch.compile(F.linear, dynamic=False)
        by_factors = torch.compile(factored_linear, dynamic=False)
        by_bits = torch.compile(packed_linear, dynamic=False)
        sides["plain, compiled"] = lambda: plain(x, weight, bias)
        sides["factored, compiled"] = lambda: by_factors(x, weight, bias, *factors)
        sides["packed, compiled"] = lambda: by_bits(x, weight, bias, packed, BATCH)

    def gradients(side: str) -> tuple[torch.Tensor, ...]:
        trained = (x, *factors) if not side.startswith(("plain", "packed")) else (x,)
        return torch.autograd.grad(sides[side](), trained, upstream)

    checked = [side for side in sides if side.startswith(("factored", "packed"))]
    with torch.no_grad():
        expected = sides["dense"]()
        differences = {side: relative_difference(sides[side](), expected) for side in checked}
    for side in checked:  # packed masks have the gradient of x only
        pairs = zip(gradients(side), gradients("dense"))
        differences[f"{side}_gradients"] = max(relative_difference(a, b) for a, b in pairs)
    worst = max(differences.values())
    if not worst <= tolerance:
        raise SystemExit(
            f"expected the result of dense masks at width {width}, {tokens} tokens, got {differences}; {undecided} logits "
            "lie at the threshold"
        )

    times: dict[str, list[float]] = {_key(side, kind): [] for side in sides for kind in ("infer", "train")}
    for repeat in range(repeats + WARM_UP):
        for side, call in sides.items():
            with torch.no_grad():
                infer = milliseconds(call, device)
            train = milliseconds(lambda side=side: gradients(side), device)
            if repeat >= WARM_UP:
                times[_key(side, "infer")].append(infer)
                times[_key(side, "train")].append(train)
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return {"width": width, "tokens": tokens, **medians, "difference": worst}


def table(entries: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    parts = []
    for name, record in entries.items():
        sides = [key.removesuffix("_infer_ms") for key in record["rows"][0] if key.endswith("_infer_ms")]
        header = ["width", "tokens", *(side.replace("_", ", ") for side in sides)]
        parts.append(
            f"{name}: batch {record['batch']}, rank {record['rank']}, medians of {record['repeats']} repeats, ms; "
            f"{machine_line(record['machine'])}."
        )
        for kind, label in (("infer", "Forward"), ("train", "Forward and backward")):
            rows = [
                [row["width"], row["tokens"], *(f"{row[f'{side}_{kind}_ms']:.1f}" for side in sides)]
                for row in record["rows"]
            ]
            parts.append(f"{label}:\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also torch.compile; needs a C++ compiler on a CPU")
    parser.add_argument("--output", type=Path, default=RESULTS / "masked_layers.json")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for width, tokens in SIZES:
        dtype = getattr(torch, args.dtype)
        rows.append(measure(width, tokens, args.device, dtype, args.repeats, TOLERANCES[args.dtype], args.compile))
        print(rows[-1], flush=True)
    entries = read_record(args.output)
    record = {"batch": BATCH, "rank": RANK, "repeats": args.repeats, "rows": rows, "machine": machine()}
    entries[f"{args.device}, {args.dtype}"] = record
    save_record(entries, args.output, "One masked layer", table(entries))


if __name__ == "__main__":
    main()
