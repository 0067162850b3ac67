"""Cost of one iteration of a search at SD 1.5 size, 512 pixels, guided, with ViT-H/14 and ViT-L/16 rewards.

    python benchmarks/search_iteration.py               # FLOPs of every part, time of the U-Net part and the decoder
    python benchmarks/search_iteration.py --no-time     # FLOPs and planned memory only, in seconds; writes nothing

FLOPs are counted on the meta device; time is measured with random weights in one run, part after part, since not all fit
in memory at once, and on a GPU the peak of each part with it. What masks leave alone (the encoder, and the unconditional
half) is computed once a step: "step of the default" has it in, over a step of as many plain iterations. Writes
docs/results/search_iteration.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

import maskunet as mu
from machine import machine
from maskunet.allocator import keep_freed_memory
from maskunet.relaxation import threshold
from maskunet.searching.prefix_cache import PrefixCache
from maskunet.searching.searched_masks import SearchedMasks
from maskunet.targets import describe

RESULTS = Path(__file__).parents[1] / "docs" / "results"
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}


def unet_side(device: str, *, reuse: bool, rows: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """An iteration's U-Net part: forward with masks, backward to the logits."""
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        latents, embeds = torch.randn(rows, 4, 64, 64, dtype=dtype), torch.randn(rows, 77, 768, dtype=dtype)
        timestep = torch.tensor(500)
    unet.to(dtype).requires_grad_(False)
    network = describe(unet, "decoder-attention")
    live = SearchedMasks(network)
    mu.attach(unet, live)
    kept = PrefixCache(unet, network) if reuse else None
    logits = {x.name: torch.ones(1, *x.shape, device=device, requires_grad=True) for x in network.layers}

    def call() -> None:
        live.masks = {name: threshold(x, 1.0) for name, x in logits.items()}
        unet(latents, timestep, embeds, return_dict=False)[0].sum().backward()
        for x in logits.values():
            x.grad = None

    if kept is not None:
        with torch.no_grad():
            live.masks = {}
            unet(latents, timestep, embeds)  # the untouched part is computed here, once a step
    return call


def decoder_side(device: str, size: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Decoding for the reward, both ways."""
    with torch.device(device):
        vae = AutoencoderKL(**VAE)
        latents = torch.randn(1, 4, size, size, dtype=dtype, requires_grad=True)
    vae.to(dtype).requires_grad_(False)
    return lambda: vae.decode(latents, return_dict=False)[0].sum().backward()


def reward_side(
    device: str, layers: int, width: int, patch: int, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A reward's vision tower, both ways; its text side is computed once."""
    with torch.device(device):
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            image_size=224,
            patch_size=patch,
        )
        model: Any = CLIPVisionModel(config)
        pictures: Tensor = torch.randn(1, 3, 224, 224, dtype=dtype, requires_grad=True)
    model.to(dtype).requires_grad_(False)
    return lambda: model(pictures).pooler_output.sum().backward()


def forward_side(device: str, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """What is computed once a step: the unconditional half, and the conditional half's encoder (counted as a whole half)."""
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        latents, embeds = torch.randn(2, 4, 64, 64, dtype=dtype), torch.randn(2, 77, 768, dtype=dtype)
        timestep = torch.tensor(500)
    unet.to(dtype).requires_grad_(False)

    def call() -> None:
        with torch.no_grad():
            unet(latents, timestep, embeds)

    return call


PARTS: dict[str, Callable[..., Callable[[], None]]] = {
    "unet, plain": lambda d, **o: unet_side(d, **o, reuse=False, rows=2),
    "unet, reuse": lambda d, **o: unet_side(d, **o, reuse=True, rows=2),
    "unet, reuse, conditional half": lambda d, **o: unet_side(d, **o, reuse=True, rows=1),
    "unet, both halves without gradient, once a step": lambda d, **o: forward_side(d, **o),
    "decoder, 512 px": lambda d, **o: decoder_side(d, 64, **o),
    "decoder, 256 px": lambda d, **o: decoder_side(d, 32, **o),
    "reward, ViT-H/14": lambda d, **o: reward_side(d, 32, 1280, 14, **o),
    "reward, ViT-L/16": lambda d, **o: reward_side(d, 24, 1024, 16, **o),
}
PLAIN, DEFAULT = "plain", "reuse, conditional half, 256 px"
ITERATIONS = {
    "plain": ("unet, plain", "decoder, 512 px"),
    "reuse": ("unet, reuse", "decoder, 512 px"),
    "reuse, 256 px": ("unet, reuse", "decoder, 256 px"),
    "reuse, conditional half, 256 px": ("unet, reuse, conditional half", "decoder, 256 px"),
}


def flops(call: Callable[[], None]) -> float:
    """TFLOP of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def saved(call: Callable[[], None]) -> float:
    """GiB that a call keeps for its backward pass, weights left out."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if x.requires_grad or x.grad_fn is not None or x.is_leaf:
            seen[storage._cdata] = storage.nbytes()
        return x

    weights = {p.untyped_storage()._cdata for p in _parameters(call)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return sum(size for key, size in seen.items() if key not in weights) / 2**30


def _parameters(call: Callable[[], None]) -> list[Tensor]:
    """Parameters of the modules that a call closes over."""
    cells = [c.cell_contents for c in call.__closure__ or ()]
    return [p for x in cells if isinstance(x, torch.nn.Module) for p in x.parameters()]


#: GiB that stay in memory in half precision: parameters in millions, two bytes each; logits and Adam in single.
RESIDENT = {
    "U-Net": 859.5e6 * 2,
    "autoencoder": 83.7e6 * 2,
    "text encoder": 123.1e6 * 2,
    "HPSv2 (ViT-H/14 and its text tower)": 986.1e6 * 2,
    "ImageReward (ViT-L/16, BERT)": 447e6 * 2,
    "mask logits, their gradient, Adam's two moments": 49.03e6 * 4 * 4,
    "best masks of the step, one byte": 49.03e6,
}


def step_of_default(parts: dict[str, float]) -> float:
    """Ratio of a step of the preset "default", its evaluations and what is computed once, to plain ones of as many."""
    count = int(max(mu.SearchConfig.preset("default").iterations)) + 1
    rewards = sum(v for name, v in parts.items() if name.startswith("reward"))
    plain, ours = (sum(parts[p] for p in ITERATIONS[name]) + rewards for name in (PLAIN, DEFAULT))
    return (count * ours + parts["unet, both halves without gradient, once a step"]) / (count * plain)


def totals(parts: dict[str, float]) -> dict[str, dict[str, float]]:
    """Whole iterations and their ratio to the plain one."""
    rewards = sum(v for name, v in parts.items() if name.startswith("reward"))
    whole = {name: sum(parts[p] for p in used) + rewards for name, used in ITERATIONS.items()}
    unet = parts["unet, plain"]
    return {
        name: {
            "whole": value,
            "ratio": value / whole["plain"],
            "unet_ratio": parts[ITERATIONS[name][0]] / unet,
        }
        for name, value in whole.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-time", action="store_true", help="no time is measured, and nothing written")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    counted = {name: flops(make("meta")) for name, make in PARTS.items()}
    result: dict[str, Any] = {"machine": machine(), "tflop": {"parts": counted, "iterations": totals(counted)}}
    kept = {name: saved(make("meta", dtype=torch.float16)) for name, make in PARTS.items()}
    without_offload = {name: size / 2**30 for name, size in RESIDENT.items()}
    rewards = sum(v for name, v in kept.items() if name.startswith("reward"))
    peaks = {name: sum(without_offload.values()) + sum(kept[p] for p in used) + rewards for name, used in ITERATIONS.items()}
    result["gib_in_half_precision"] = {"saved": kept, "without_offload": without_offload, "peak": peaks}
    for name, peak in peaks.items():
        parts = ", ".join(f"{part} {kept[part]:.1f}" for part in ITERATIONS[name])
        print(f"{name}: {peak:.1f} GiB planned at 512 px, batch 1, half precision, no checkpointing: {parts}")
    shared = {k: v for k, v in kept.items() if k.startswith("reward")} | without_offload
    print("of it in all of them:", ", ".join(f"{part} {size:.1f}" for part, size in shared.items()))
    if not args.no_time:
        taken: dict[str, float] = {}
        peak_of: dict[str, float] = {}
        for name, make in PARTS.items():  # one part in memory at a time
            if args.device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            call, seconds = make(args.device), []
            for _ in range(args.repeats + 1):
                start = time.perf_counter()
                call()
                if args.device != "cpu":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            taken[name] = statistics.median(seconds[1:])
            print(f"{name}: {taken[name]:.2f} s", flush=True)
            if args.device != "cpu":
                peak_of[name] = torch.cuda.max_memory_allocated() / 2**30
        result["seconds"] = {"parts": taken, "iterations": totals(taken), "repeats": args.repeats}
        result["seconds"]["step_of_default"] = step_of_default(taken)
        if peak_of:
            result["gib_peak_of_part"] = peak_of
    for name, parts in result["tflop"]["iterations"].items():
        line = f"{name}: {parts['whole']:.2f} TFLOP, {parts['ratio']:.2f} x; U-Net part {parts['unet_ratio']:.2f} x"
        if "seconds" in result:
            found = result["seconds"]["iterations"][name]
            line += f"; {found['whole']:.1f} s, {found['ratio']:.2f} x; U-Net part {found['unet_ratio']:.2f} x"
        print(line)
    result["tflop"]["step_of_default"] = step_of_default(counted)
    line = f"a step of the default: {result['tflop']['step_of_default']:.2f} x in TFLOP"
    print(line + (f", {result['seconds']['step_of_default']:.2f} x in time" if "seconds" in result else ""))
    if args.no_time:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "search_iteration.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
