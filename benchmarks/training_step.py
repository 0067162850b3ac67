"""Cost of a training step: masks against a LoRA of rank 16 on the same targets, at SD 1.5 size with random weights.

    python benchmarks/training_step.py                      # CPU, 64 x 64 latents (512 pixels), batch 1
    python benchmarks/training_step.py --device cuda --dtype float16 --batch-size 4 --steps 20

Sides run in one call, each in a process of its own, after another or, with `--rounds`, in turns; time is the median over
steps, memory the peak of the process (CPU) or of the allocator (CUDA). Writes docs/results/training_step.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

import maskunet as mu
from machine import machine
from maskunet.allocator import keep_freed_memory
from maskunet.diffusion import diffusion_errors
from maskunet.training import TrainLora, TrainMasks
from maskunet.training.optimizer import build_optimizer

RESULTS = Path(__file__).parents[1] / "docs" / "results"
#: A LoRA, and both generators with drawn masks and with masks by threshold.
SIDES = ("lora", "low-rank", "low-rank-threshold", "paper", "paper-threshold")


class Pipe:
    """As much of a pipeline as a method needs."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet


def run_side(name: str, args: argparse.Namespace) -> dict[str, Any]:
    keep_freed_memory()
    torch.manual_seed(0)
    with torch.device(args.device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    unet = unet.to(getattr(torch, args.dtype)).requires_grad_(False)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    pipe = Pipe(unet)
    if name == "base":
        method = None
    elif name == "lora":
        method = TrainLora(rank=16)
    else:
        kind = mu.MaskGenerator if name.startswith("paper") else mu.LowRankMasker
        method = TrainMasks(kind.for_unet(unet, seed=0), gumbel=not name.endswith("threshold"))
    trained = [p for p in method.install(pipe, 0).parameters() if p.requires_grad] if method else []
    optimizer = build_optimizer(trained, 1e-5, mu.TrainConfig()) if trained else None
    scheduler, dtype = DDPMScheduler(), getattr(torch, args.dtype)
    times = []
    for step in range(args.steps + 1):
        shape = (args.batch_size, 4, args.latents, args.latents)
        latents, noise = (torch.randn(shape, device=args.device, dtype=dtype) for _ in range(2))
        embeds = torch.randn(args.batch_size, 77, 768, device=args.device, dtype=dtype)
        timesteps = torch.randint(1000, (args.batch_size,), device=args.device)
        if args.device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        if method is not None:
            method.begin([step * 100 + i for i in range(args.batch_size)])
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            loss = diffusion_errors(unet, scheduler, latents, embeds, noise, timesteps).mean()
        if optimizer is not None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if args.device != "cpu":
            torch.cuda.synchronize()
        if step:  # the first one warms up
            times.append(time.perf_counter() - start)
    if args.device == "cpu":
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        memory = torch.cuda.max_memory_allocated() / 2**30
    return {"times_s": times, "memory_gib": memory, "trained": sum(p.numel() for p in trained)}


def merged(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a side's rounds have together."""
    times = [t for made in rounds for t in made["times_s"]]
    return {
        "median_s": statistics.median(times),
        "least_s": min(times),
        "most_s": max(times),
        "memory_gib": max(made["memory_gib"] for made in rounds),
        "trained": rounds[0]["trained"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a process, after one to warm up")
    parser.add_argument("--rounds", type=int, default=1, help="times that all sides are run in turns")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--side", choices=("base", *SIDES))
    parser.add_argument(
        "--sides", nargs="+", default=list(SIDES), choices=SIDES, help="the first is what others are over"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "training_step.json")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.sides}
    for _ in range(args.rounds):
        for name in args.sides:
            words = [sys.executable, __file__, "--side", name, *sys.argv[1:]]
            out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(out.splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    sides = {name: merged(made) for name, made in found.items()}
    ratios = {
        name: {k: round(sides[name][k] / sides["lora"][k], 3) for k in ("median_s", "memory_gib")}
        for name in args.sides[1:]
    }
    settings = {k: v for k, v in vars(args).items() if k not in ("side", "output")}
    record = {"settings": settings, "sides": sides, "over_lora": ratios, "machine": machine()}
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
