"""Cost of masks in a U-Net call: real architectures with random weights, sides alternating in one run.

    python -m benchmarks.masked_forward                                     # SD 1.5, batch 2: minutes on two cores
    python -m benchmarks.masked_forward --models sd15 sd21 sdxl --batches 2 8 --device cuda --dtype float16

Sides: the U-Net alone ("base"); the paper's generator; the low-rank masker; fixed packed masks, one set per half of a
guided batch; and the plain dense way, which also draws noise ("dense", see dense_masks.py). "low-rank, tiled" and
"packed, tiled" force tiles where small layers take the reference by default. A ratio is the median of the ratios within a
round. Memory is the peak of a process that runs one side (CPU) or of the allocator (GPU). Writes
docs/results/masked_forward.{json,md}, one entry per model, batch and device.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import maskunet as mu
from benchmarks.dense_masks import attach_dense
from benchmarks.records import RESULTS, machine_line, markdown_table, read_record, save_record
from maskunet import targets
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.maskers import FixedMasks
from maskunet.operators import using

COMMAND = [sys.executable, "-m", "benchmarks.masked_forward"]
SIDES = ("base", "paper", "low-rank", "packed", "dense")
TILED = ("low-rank, tiled", "packed, tiled")
#: Config of the U-Net, and the side of its latents.
ARCHITECTURES: dict[str, tuple[dict[str, Any], int]] = {
    "sd15": ({"cross_attention_dim": 768}, 64),
    "sd21": ({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}, 96),
    "sdxl": (
        {
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        128,
    ),
}
MODELS = ("shapes", *ARCHITECTURES)


def build_unet(name: str, batch: int, device: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """Return a U-Net and the arguments of a call."""
    torch.manual_seed(0)
    if name == "shapes":
        unet, size, tokens = mu.zoo.load("shapes").unet, 8, 24
    else:
        config, size = ARCHITECTURES[name]
        with torch.device(device):
            unet = UNet2DConditionModel(sample_size=size, **config)
        tokens = 77
    unet = unet.to(device, dtype).eval()
    make = {"device": device, "dtype": dtype}
    call: dict[str, Any] = {
        "sample": torch.randn(batch, unet.config.in_channels, size, size, **make),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(batch, tokens, unet.config.cross_attention_dim, **make),
    }
    if name == "sdxl":
        ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]], device=device).repeat(batch, 1)
        call["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 1280, **make), "time_ids": ids}
    return unet, call


def masker_of(side: str, unet: nn.Module) -> Any:
    """Return the masker of a side; None for the sides without one."""
    if side == "paper":
        return mu.MaskGenerator.for_unet(unet, seed=0)
    if side.startswith("low-rank"):
        return mu.LowRankMasker.for_unet(unet, seed=0)
    if side.startswith("packed"):
        return FixedMasks(DrawnMasks(unet))
    return None


class DrawnMasks(Mapping[str, Tensor]):
    """Masks of density 0.9, two per layer, drawn on access: all at once take 1.3 GiB at SDXL size."""

    def __init__(self, unet: nn.Module) -> None:
        self.shapes = {x.name: x.shape for x in targets.describe(unet, "decoder-attention").layers}

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(list(self.shapes).index(name))
        return torch.rand(2, *self.shapes[name], generator=generator) < 0.9

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def operator_of(side: str) -> AbstractContextManager[None]:
    """Return the context that selects the operator of a side."""
    return using("tiled" if side in TILED else "auto")


def seconds(run: Callable[[], Any], device: str) -> float:
    """Return the time of a call in seconds."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def network_of(side: str, unet: nn.Module, device: str) -> tuple[nn.Module, int | None]:
    """Return a copy of the U-Net that shares its weights and has the side's masks, and the parameters that these add."""
    network = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    if side == "dense":
        generators = attach_dense(network).to(device, next(network.parameters()).dtype)
        return network, sum(p.numel() for p in generators.parameters())
    if (masker := masker_of(side, network)) is None:
        return network, None
    mu.attach(network, masker.to(device))
    return network, sum(p.numel() for p in masker.parameters())


def time_sides(sides: list[str], args: argparse.Namespace, name: str, batch: int) -> dict[str, dict[str, Any]]:
    """Return times, FLOPs and parameters of every side; sides alternate."""
    unet, call = build_unet(name, batch, args.device, getattr(torch, args.dtype))
    networks: dict[str, nn.Module] = {}
    results: dict[str, dict[str, Any]] = {}
    for side in sides:
        networks[side], added = network_of(side, unet, args.device)
        results[side] = {} if added is None else {"parameters": added}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for i in range(args.repeats + 1):
        for side in sides if i or not args.warm_up_base else sides[:1]:
            network = networks[side]
            if i == 0 and not args.warm_up_base:  # the first round counts and warms up
                with FlopCounterMode(display=False) as counter, torch.inference_mode(), operator_of(side):
                    network(**call)
                results[side]["tflop"] = round(counter.get_total_flops() / 1e12, 4)
                continue
            with operator_of(side):
                duration = seconds(lambda n=network: n(**call), args.device)
            print(f"{side}: {duration:.1f} s{'' if i else ', to warm up'}", file=sys.stderr, flush=True)
            if i:
                times[side].append(duration)
    for side in sides:
        ratios = [t / b for t, b in zip(times[side], times["base"], strict=True)]
        results[side] |= {
            "median_s": round(statistics.median(times[side]), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return results


def table(entries: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = []
    for name, entry in entries.items():
        for side, result in entry["sides"].items():
            low, high = result["ratio_range"]
            rows.append(
                [
                    name,
                    side,
                    f"{result['parameters'] / 1e6:.1f} M" if result.get("parameters") else None,
                    result.get("tflop"),
                    f"{result['median_s']:.3f}",
                    f"{result['ratio']:.3f} ({low:.2f}-{high:.2f})",
                    entry["settings"]["repeats"],
                    f"{result['memory_gib']:.2f}" if "memory_gib" in result else None,
                ]
            )
    header = ["case", "side", "parameters", "TFLOP", "seconds", "over base, by round", "rounds", "GiB"]
    machines = dict.fromkeys(machine_line(entry["machine"]) for entry in entries.values())
    return f"{'; '.join(machines)}.\n\n{markdown_table(header, rows)}"


def peak_memory(side: str, args: argparse.Namespace, name: str, batch: int) -> float:
    """Return the peak in GiB of this process, or of the allocator, after two calls of a side."""
    dtype = getattr(torch, args.dtype)
    unet, call = build_unet(name, batch, args.device, dtype)
    if side == "dense":
        attach_dense(unet).to(args.device, dtype)
    elif (masker := masker_of(side, unet)) is not None:
        mu.attach(unet, masker.to(args.device))
    for _ in range(2):
        with operator_of(side):
            seconds(lambda: unet(**call), args.device)
    if args.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd15"], choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[2])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=(*SIDES, *TILED))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-up-base", action="store_true", help="warm up the base alone, and count no operations")
    parser.add_argument("--no-memory", action="store_true", help="skip memory, which needs one process per side")
    parser.add_argument("--memory-of", choices=(*SIDES, *TILED), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "masked_forward.json")
    args = parser.parse_args()
    keep_freed_memory()
    if args.memory_of:
        print(peak_memory(args.memory_of, args, args.models[0], args.batches[0]))
        return
    entries = read_record(args.output)
    # Memory comes first and each case has its own process: a child's peak includes its parent's memory at the start.
    cases = [(name, batch) for name in args.models for batch in args.batches]
    if len(cases) > 1:
        for name, batch in cases:
            subprocess.run([*COMMAND, *sys.argv[1:], "--models", name, "--batches", str(batch)], check=True)
        return
    for name in args.models:
        for batch in args.batches:
            memory = {}
            for side in [] if args.no_memory else args.sides:
                words = [*COMMAND, "--memory-of", side, "--models", name, "--batches", str(batch)]
                words += ["--device", args.device, "--dtype", args.dtype]
                out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                memory[side] = round(float(out.splitlines()[-1]), 3)
            results = time_sides(args.sides, args, name, batch)
            for side, peak in memory.items():
                results[side]["memory_gib"] = peak
            for side in args.sides:
                print(name, batch, side, results[side], flush=True)
            settings = {k: getattr(args, k) for k in ("device", "dtype", "repeats", "warm_up_base")}
            entries[f"{name}, batch {batch}, {args.device}, {args.dtype}"] = {
                "settings": settings,
                "sides": results,
                "machine": machine(),
            }
            save_record(entries, args.output, "A U-Net call with masks", table(entries))


if __name__ == "__main__":
    main()
