"""Cost of a training step: masks against a LoRA of rank 16 on the same targets, at SD 1.5 size with random weights.

    python -m benchmarks.training_step      # CPU, 64 x 64 latents (512 pixels), batch 1; ten minutes on two cores
    python -m benchmarks.training_step --device cuda --dtype float16 --batch-size 4 --steps 20

Each side runs in a separate process; with `--rounds` the sides alternate. Time is the median over the steps, memory the
peak of the process (CPU) or of the allocator (CUDA). Writes docs/results/training_step.{json,md}.
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
from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from maskunet.allocator import keep_freed_memory
from maskunet.diffusion import diffusion_errors
from maskunet.machine import machine
from maskunet.training import LoraMethod, MaskMethod
from maskunet.training.optimizer import build_optimizer

#: A LoRA, and both maskers with drawn masks and with masks by threshold.
SIDES = ("lora", "low-rank", "low-rank-threshold", "paper", "paper-threshold")


class UnetOnly:
    """The part of a pipeline that a method needs."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet


def run_side(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return step times, peak memory and trained parameters of one side."""
    keep_freed_memory()
    torch.manual_seed(0)
    with torch.device(args.device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    unet = unet.to(getattr(torch, args.dtype)).requires_grad_(False)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    pipe = UnetOnly(unet)
    if name == "base":
        method = None
    elif name == "lora":
        method = LoraMethod(rank=16)
    else:
        kind = mu.MaskGenerator if name.startswith("paper") else mu.LowRankMasker
        method = MaskMethod(kind.for_unet(unet, seed=0), gumbel=not name.endswith("threshold"))
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
            method.start_batch([step * 100 + i for i in range(args.batch_size)])
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            loss = diffusion_errors(unet, scheduler, latents, embeds, noise, timesteps).mean()
        if optimizer is not None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if args.device != "cpu":
            torch.cuda.synchronize()
        if step:  # the first step warms up
            times.append(time.perf_counter() - start)
    if args.device == "cpu":
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        memory = torch.cuda.max_memory_allocated() / 2**30
    return {"times_s": times, "memory_gib": memory, "trained": sum(p.numel() for p in trained)}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one side's figures over all its rounds."""
    times = [t for results in rounds for t in results["times_s"]]
    return {
        "median_s": statistics.median(times),
        "least_s": min(times),
        "most_s": max(times),
        "memory_gib": max(results["memory_gib"] for results in rounds),
        "trained": rounds[0]["trained"],
    }


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = []
    for name, side in record["sides"].items():
        ratios = record["over_lora"].get(name, {"median_s": 1.0, "memory_gib": 1.0})
        rows.append(
            [
                name,
                f"{side['trained'] / 1e6:.1f} M",
                f"{side['median_s']:.2f} ({side['least_s']:.2f}-{side['most_s']:.2f})",
                f"{ratios['median_s']:.2f}",
                f"{side['memory_gib']:.2f}",
                f"{ratios['memory_gib']:.2f}",
            ]
        )
    settings = record["settings"]
    header = ["side", "trained", "seconds (range)", "over LoRA", "GiB", "over LoRA"]
    return (
        f"SD 1.5 size, latents {settings['latents']} x {settings['latents']}, batch {settings['batch_size']}, "
        f"{settings['dtype']}, {settings['steps']} steps per side after one warm-up step; {machine_line(record['machine'])}."
        f"\n\n{markdown_table(header, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="timed steps per process, after one warm-up step")
    parser.add_argument("--rounds", type=int, default=1, help="how often the sides alternate")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--side", choices=("base", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument(
        "--sides", nargs="+", default=list(SIDES), choices=SIDES, help="sides to run; ratios are relative to the LoRA"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "training_step.json")
    args = parser.parse_args()
    if "lora" not in args.sides:
        parser.error("expected 'lora' among --sides: ratios are relative to it")
    if args.side:
        print(json.dumps(run_side(args.side, args)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in args.sides}
    for _ in range(args.rounds):
        for name in args.sides:
            words = [sys.executable, "-m", "benchmarks.training_step", "--side", name, *sys.argv[1:]]
            out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            rounds[name].append(json.loads(out.splitlines()[-1]))
            print(name, rounds[name][-1], flush=True)
    sides = {name: summary(results) for name, results in rounds.items()}
    ratios = {
        name: {k: round(sides[name][k] / sides["lora"][k], 3) for k in ("median_s", "memory_gib")}
        for name in args.sides
        if name != "lora"
    }
    settings = {k: v for k, v in vars(args).items() if k not in ("side", "output")}
    record = {"settings": settings, "sides": sides, "over_lora": ratios, "machine": machine()}
    print(table(record))
    save_record(record, args.output, "A training step", table(record))


if __name__ == "__main__":
    main()
