"""Time a call of the U-Net without and with masks, alternating, in one run.

    python benchmarks/masked_forward.py --models shapes sd15 --repeats 5

Random weights in the real architecture serve for Stable Diffusion 1.5: timing needs no trained ones. Prints and writes
docs/results/masked_forward.json; a side's figure is the median, and the ratio is the median of paired ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

import maskunet as mu
from machine import machine
from maskunet.allocator import keep_freed_memory

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "masked_forward.json"


def shapes() -> tuple[torch.nn.Module, dict, int]:
    unet = mu.zoo.load("shapes").unet
    batch = 32
    call = {"sample": torch.randn(batch, 8, 8, 8), "encoder_hidden_states": torch.randn(batch, 24, 128)}
    return unet, call | {"timestep": torch.tensor(500)}, batch


def sd15() -> tuple[torch.nn.Module, dict, int]:
    unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64).eval()
    call = {"sample": torch.randn(2, 4, 64, 64), "encoder_hidden_states": torch.randn(2, 77, 768)}
    return unet, call | {"timestep": torch.tensor(500)}, 2


MODELS: dict[str, Callable] = {"shapes": shapes, "sd15": sd15}


def seconds(unet: torch.nn.Module, call: dict) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        unet(**call)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["shapes"], choices=MODELS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for name in args.models:
        unet, call, batch = MODELS[name]()
        masker = mu.MaskGenerator.for_unet(unet, seed=0)
        mu.attach(unet, masker)
        base, masked = [], []
        for i in range(args.repeats + 1):
            with mu.disabled(unet):
                without = seconds(unet, call)
            with_masks = seconds(unet, call)
            if i:  # the first pair warms up
                base.append(without)
                masked.append(with_masks)
        ratios = [m / b for b, m in zip(base, masked)]
        rows.append(
            {
                "model": name,
                "batch": batch,
                "base_s": round(statistics.median(base), 4),
                "masked_s": round(statistics.median(masked), 4),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "unet_parameters": sum(p.numel() for p in unet.parameters()),
                "masker_parameters": sum(p.numel() for p in masker.parameters()),
                "masked_weights": masker.network.weights,
            }
        )
        mu.detach(unet)
    record = {"repeats": args.repeats, "rows": rows, "machine": machine()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
