"""Time one layer of Stable Diffusion 1.5's sizes: plain, by masks in full ("dense"), and each way of the library.

    python benchmarks/masked_layers.py                                               # CPU: in tiles
    python benchmarks/masked_layers.py --device cuda --dtype float16 --repeats 20    # by the Triton kernels
    python benchmarks/masked_layers.py --compile             # beside them what torch.compile makes of plain PyTorch

Every size is first checked for equality of outputs and gradients. The sides take turns within a repeat; a side's figure
is the median over the repeats of a forward ("infer") and of a forward with its backward ("train"). Prints and writes
docs/results/masked_layers.json, one entry a device and dtype.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from machine import machine
from maskunet.allocator import keep_freed_memory
from maskunet.operators import factored_linear, masked_linear, pack_bits, packed_linear, using
from maskunet.relaxation import THRESHOLD, threshold

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "masked_layers.json"
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
BATCH, RANK = 2, 16


#: Width and tokens of the decoder's layers, its bottom one and a cross-attention's keys and values.
SIZES = ((1280, 64), (1280, 256), (1280, 77), (640, 1024), (640, 77), (320, 4096), (320, 77))


def milliseconds(call: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def _key(side: str, kind: str) -> str:
    return f"{side.replace(', ', '_')}_{kind}_ms"


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def forced(call: Callable[[], torch.Tensor], implementation: str) -> Callable[[], torch.Tensor]:
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
        undecided = ((logits - THRESHOLD).abs() < 1e-5).sum().item()  # rounding may decide these either way
    given = torch.randn_like(x)
    fast = "tiled" if device == "cpu" else "triton"
    sides = {
        "plain": lambda: F.linear(x, weight, bias),
        "dense": lambda: masked_linear(x, weight, bias, threshold(left @ right.T + row)),
    }
    for name in ("reference", fast):
        sides[f"factored, {name}"] = forced(lambda: factored_linear(x, weight, bias, *factors), name)
        sides[f"packed, {name}"] = forced(lambda: packed_linear(x, weight, bias, packed, BATCH), name)
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
        return torch.autograd.grad(sides[side](), trained, given)

    checked = [side for side in sides if side.startswith(("factored", "packed"))]
    with torch.no_grad():
        expected = sides["dense"]()
        differences = {side: distance(sides[side](), expected) for side in checked}
    for side in checked:  # of packed masks the first alone
        pairs = zip(gradients(side), gradients("dense"))
        differences[f"{side}_gradients"] = max(distance(a, b) for a, b in pairs)
    worst = max(differences.values())
    if not worst <= tolerance:
        raise SystemExit(f"{width=}, {tokens=}: differs from dense masks, {differences}; {undecided} logits undecided")

    times: dict[str, list[float]] = {_key(side, kind): [] for side in sides for kind in ("infer", "train")}
    for repeat in range(repeats + 3):
        for side, call in sides.items():
            with torch.no_grad():
                infer = milliseconds(call, device)
            train = milliseconds(lambda side=side: gradients(side), device)
            if repeat >= 3:  # the first ones warm up
                times[_key(side, "infer")].append(infer)
                times[_key(side, "train")].append(train)
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return {"width": width, "tokens": tokens, **medians, "difference": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; needs a C++ compiler on a CPU")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for width, tokens in SIZES:
        dtype = getattr(torch, args.dtype)
        rows.append(measure(width, tokens, args.device, dtype, args.repeats, TOLERANCES[args.dtype], args.compile))
        print(rows[-1], flush=True)
    entries = json.loads(args.output.read_text()) if args.output.exists() else {}
    record = {"batch": BATCH, "rank": RANK, "repeats": args.repeats, "rows": rows, "machine": machine()}
    entries[f"{args.device}, {args.dtype}"] = record
    args.output.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
