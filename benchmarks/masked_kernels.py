"""Time one layer of Stable Diffusion 1.5's sizes on a GPU: plain, masked in plain PyTorch, and by the Triton kernels.

    python benchmarks/masked_kernels.py --dtype float16 --repeats 20

Every size is first checked for equality of outputs and gradients. The sides take turns within a repeat; a side's figure
is the median over the repeats of a forward ("infer") and of a forward with its backward ("train"). Prints and writes
docs/results/masked_kernels.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from machine import machine
from maskunet.operators import fused_gpu, masked_linear, pack_bits
from maskunet.relaxation import THRESHOLD, threshold

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "masked_kernels.json"
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
BATCH, RANK = 2, 16


def milliseconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def measure(width: int, tokens: int, dtype: torch.dtype, repeats: int, tolerance: float) -> dict:
    weight = torch.randn(width, width, device="cuda", dtype=dtype) / width**0.5
    bias = torch.randn(width, device="cuda", dtype=dtype)
    x = torch.randn(BATCH, tokens, width, device="cuda", dtype=dtype, requires_grad=True)
    left = (torch.randn(BATCH, width, RANK, device="cuda") / RANK**0.5).requires_grad_()
    right = torch.randn(width, RANK, device="cuda", requires_grad=True)
    row = torch.randn(width, device="cuda", requires_grad=True)
    factors = (left, right, row)
    with torch.no_grad():
        logits = left @ right.T + row
        packed = pack_bits(logits >= THRESHOLD)
        undecided = ((logits - THRESHOLD).abs() < 1e-5).sum().item()  # rounding may decide these either way
    given = torch.randn_like(x)
    sides = {
        "plain": lambda: F.linear(x, weight, bias),
        "reference": lambda: masked_linear(x, weight, bias, threshold(left @ right.T + row)),
        "factored": lambda: fused_gpu.factored_linear(x, weight, bias, *factors),
        "packed": lambda: fused_gpu.packed_linear(x, weight, bias, packed, BATCH),
    }

    def gradients(side: str) -> tuple[torch.Tensor, ...]:
        trained = (x, *factors) if side in ("reference", "factored") else (x,)
        return torch.autograd.grad(sides[side](), trained, given)

    with torch.no_grad():
        expected = sides["reference"]()
        differences = {side: distance(sides[side](), expected) for side in ("factored", "packed")}
    for side in ("factored", "packed"):  # of packed masks the first alone
        pairs = zip(gradients(side), gradients("reference"))
        differences[f"{side}_gradients"] = max(distance(a, b) for a, b in pairs)
    worst = max(differences.values())
    if not worst <= tolerance:
        raise SystemExit(
            f"{width=}, {tokens=}: differs from the reference, {differences}; {undecided} logits undecided"
        )

    times: dict[str, list[float]] = {f"{side}_{kind}_ms": [] for side in sides for kind in ("infer", "train")}
    for repeat in range(repeats + 3):
        for side, call in sides.items():
            with torch.no_grad():
                infer = milliseconds(call)
            train = milliseconds(lambda side=side: gradients(side))
            if repeat >= 3:  # the first ones warm up
                times[f"{side}_infer_ms"].append(infer)
                times[f"{side}_train_ms"].append(train)
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return {"width": width, "tokens": tokens, **medians, "difference": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float16", choices=TOLERANCES)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[320, 640, 1280])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available() or not fused_gpu.available("cuda"):
        sys.exit("expected a CUDA device and triton, got none: the kernels are not worth timing in the interpreter")
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    sizes = [(width, tokens) for width in args.widths for tokens in args.tokens]
    rows = [measure(*size, dtype, args.repeats, TOLERANCES[args.dtype]) for size in sizes]
    record = {"dtype": args.dtype, "batch": BATCH, "rank": RANK, "repeats": args.repeats, "rows": rows}
    record |= {"machine": machine()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
