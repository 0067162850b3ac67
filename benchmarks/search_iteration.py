"""Cost of one search iteration at SD 1.5 size, 512 pixels, guided, with ViT-H/14 and ViT-L/16 rewards.

    python -m benchmarks.search_iteration               # ten minutes on two cores; docs/results/search_iteration.{json,md}
    python -m benchmarks.search_iteration --no-time     # operations and planned memory in seconds; writes nothing

FLOPs are counted on the meta device. Times are measured with random weights in one run, one part after the other, since
together they do not fit in memory; on a GPU also the peak of each part. The U-Net's unmasked part (the encoder and the
unconditional half) is computed once per step; "step of the default" includes it, relative to plain iterations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

import maskunet as mu
from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.relaxation import threshold
from maskunet.searching.prefix_cache import PrefixCache
from maskunet.searching.searched_masks import SearchedMasks
from maskunet.targets import describe

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
GIB = 2**30


def build_unet(device: str, rows: int, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """Return SD 1.5's U-Net with random weights and the inputs of a call."""
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        latents, embeds = torch.randn(rows, 4, 64, 64, dtype=dtype), torch.randn(rows, 77, 768, dtype=dtype)
        timestep = torch.tensor(500)
    return unet.to(dtype).requires_grad_(False), (latents, timestep, embeds)


def unet_part(device: str, *, reuse: bool, rows: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return the U-Net part of an iteration: forward with masks, backward to the logits."""
    unet, inputs = build_unet(device, rows, dtype)
    network = describe(unet, "decoder-attention")
    masker = SearchedMasks(network)
    mu.attach(unet, masker)
    logits = {x.name: torch.ones(1, *x.shape, device=device, requires_grad=True) for x in network.layers}

    def call() -> None:
        masker.masks = {name: threshold(x, 1.0) for name, x in logits.items()}
        unet(*inputs, return_dict=False)[0].sum().backward()
        for x in logits.values():
            x.grad = None

    if reuse:
        PrefixCache(unet, network)
        with torch.no_grad():
            unet(*inputs)  # fills the cache, once per step
    return call


def decoder_part(device: str, size: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return the decoder part of an iteration, forward and backward."""
    with torch.device(device):
        vae = AutoencoderKL(**VAE)
        latents = torch.randn(1, 4, size, size, dtype=dtype, requires_grad=True)
    vae.to(dtype).requires_grad_(False)
    return lambda: vae.decode(latents, return_dict=False)[0].sum().backward()


def reward_part(
    device: str, layers: int, width: int, patch: int, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """Return a reward's vision tower, forward and backward; its text tower runs once per prompt."""
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
        images: Tensor = torch.randn(1, 3, 224, 224, dtype=dtype, requires_grad=True)
    model.to(dtype).requires_grad_(False)
    return lambda: model(images).pooler_output.sum().backward()


def step_part(device: str, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return the work of a step: the unconditional half and the conditional encoder, counted as two whole halves."""
    unet, inputs = build_unet(device, 2, dtype)

    def call() -> None:
        with torch.no_grad():
            unet(*inputs)

    return call


STEP_PART = "unet, both halves without gradient, once per step"
PARTS: dict[str, Callable[..., Callable[[], None]]] = {
    "unet, plain": lambda d, **o: unet_part(d, **o, reuse=False, rows=2),
    "unet, reuse": lambda d, **o: unet_part(d, **o, reuse=True, rows=2),
    "unet, reuse, conditional half": lambda d, **o: unet_part(d, **o, reuse=True, rows=1),
    STEP_PART: lambda d, **o: step_part(d, **o),
    "decoder, 512 px": lambda d, **o: decoder_part(d, 64, **o),
    "decoder, 256 px": lambda d, **o: decoder_part(d, 32, **o),
    "reward, ViT-H/14": lambda d, **o: reward_part(d, 32, 1280, 14, **o),
    "reward, ViT-L/16": lambda d, **o: reward_part(d, 24, 1024, 16, **o),
}
PLAIN, DEFAULT = "plain", "reuse, conditional half, 256 px"
ITERATIONS = {
    "plain": ("unet, plain", "decoder, 512 px"),
    "reuse": ("unet, reuse", "decoder, 512 px"),
    "reuse, 256 px": ("unet, reuse", "decoder, 256 px"),
    "reuse, conditional half, 256 px": ("unet, reuse, conditional half", "decoder, 256 px"),
}


def flops(call: Callable[[], None]) -> float:
    """Return the TFLOP of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def saved_gib(call: Callable[[], None]) -> float:
    """Return the GiB that a call saves for its backward pass, without weights."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if x.requires_grad or x.grad_fn is not None or x.is_leaf:
            sizes[storage._cdata] = storage.nbytes()
        return x

    weights = {p.untyped_storage()._cdata for p in _parameters(call)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return sum(size for key, size in sizes.items() if key not in weights) / GIB


def _parameters(call: Callable[[], None]) -> list[Tensor]:
    """Return the parameters of the modules in a call's closure."""
    cells = [c.cell_contents for c in call.__closure__ or ()]
    return [p for x in cells if isinstance(x, nn.Module) for p in x.parameters()]


#: GiB that stay in memory in half precision: weights take two bytes each; logits and Adam's moments four.
RESIDENT = {
    "U-Net": 859.5e6 * 2 / GIB,
    "autoencoder": 83.7e6 * 2 / GIB,
    "text encoder": 123.1e6 * 2 / GIB,
    "HPSv2 (ViT-H/14 and its text tower)": 986.1e6 * 2 / GIB,
    "ImageReward (ViT-L/16, BERT)": 447e6 * 2 / GIB,
    "mask logits, their gradient, Adam's two moments": 49.03e6 * 4 * 4 / GIB,
    "best masks of the step, one byte": 49.03e6 / GIB,
}


def rewards_of(parts: dict[str, float]) -> float:
    """Return the sum over both rewards."""
    return sum(value for name, value in parts.items() if name.startswith("reward"))


def step_of_default(parts: dict[str, float]) -> float:
    """Return the cost of a step of the preset "default", with its once-per-step work, relative to plain iterations."""
    count = int(max(mu.SearchConfig.preset("default").iterations)) + 1
    plain, default = (sum(parts[p] for p in ITERATIONS[name]) + rewards_of(parts) for name in (PLAIN, DEFAULT))
    return (count * default + parts[STEP_PART]) / (count * plain)


def totals(parts: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the cost of each kind of iteration, and its ratios to the plain one."""
    sums = {name: sum(parts[p] for p in names) + rewards_of(parts) for name, names in ITERATIONS.items()}
    return {
        name: {
            "total": value,
            "ratio": value / sums[PLAIN],
            "unet_ratio": parts[ITERATIONS[name][0]] / parts["unet, plain"],
        }
        for name, value in sums.items()
    }


def plan_memory() -> dict[str, Any]:
    """Return the planned GiB in half precision, batch 1, without checkpointing."""
    saved = {name: saved_gib(part("meta", dtype=torch.float16)) for name, part in PARTS.items()}
    fixed = sum(RESIDENT.values()) + rewards_of(saved)
    peak = {name: fixed + sum(saved[p] for p in names) for name, names in ITERATIONS.items()}
    return {"saved": saved, "resident": RESIDENT, "peak": peak}


def measure_time(device: str, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds and, on a GPU, peak GiB of each part; one part is in memory at a time."""
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name, part in PARTS.items():
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        call, times = part(device), []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds[name] = statistics.median(times[1:])
        print(f"{name}: {seconds[name]:.2f} s", flush=True)
        if device != "cpu":
            peaks[name] = torch.cuda.max_memory_allocated() / GIB
    return seconds, peaks


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    flop, memory, time_ = record["tflop"], record["gib_in_half_precision"], record.get("seconds")
    iterations = []
    for name, value in flop["iterations"].items():
        row = [name, f"{value['total']:.2f}", f"{value['ratio']:.2f}", f"{value['unet_ratio']:.2f}"]
        if time_:
            seconds = time_["iterations"][name]
            row += [f"{seconds['total']:.1f}", f"{seconds['ratio']:.2f}", f"{seconds['unet_ratio']:.2f}"]
        iterations.append([*row, f"{memory['peak'][name]:.1f}"])
    header = ["iteration", "TFLOP", "over plain", "U-Net over plain"]
    header += ["seconds", "over plain", "U-Net over plain"] if time_ else []
    parts = [
        [name, f"{value:.2f}", f"{time_['parts'][name]:.2f}" if time_ else None, f"{memory['saved'][name]:.2f}"]
        for name, value in flop["parts"].items()
    ]
    lines = [
        f"SD 1.5 size, 512 pixels, batch 1, guided; {machine_line(record['machine'])}. GiB are planned for half precision "
        "without checkpointing.",
        markdown_table([*header, "GiB"], iterations),
        markdown_table(["part", "TFLOP", "seconds", "GiB saved for the backward pass"], parts),
        markdown_table(["resident", "GiB"], [[name, f"{gib:.2f}"] for name, gib in memory["resident"].items()]),
    ]
    if "step_of_default" in flop:
        ratio = f"{flop['step_of_default']:.2f} in TFLOP"
        ratio += f", {time_['step_of_default']:.2f} in time" if time_ else ""
        lines.append(f"A step of the default over plain iterations: {ratio}.")
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-time", action="store_true", help="measure no time and write nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    tflop = {name: flops(part("meta")) for name, part in PARTS.items()}
    record: dict[str, Any] = {
        "machine": machine(),
        "tflop": {"parts": tflop, "iterations": totals(tflop), "step_of_default": step_of_default(tflop)},
        "gib_in_half_precision": plan_memory(),
    }
    if not args.no_time:
        seconds, peaks = measure_time(args.device, args.repeats)
        record["seconds"] = {
            "parts": seconds,
            "iterations": totals(seconds),
            "repeats": args.repeats,
            "step_of_default": step_of_default(seconds),
        }
        if peaks:
            record["gib_peak_of_part"] = peaks
    print(table(record))
    if not args.no_time:
        save_record(record, RESULTS / "search_iteration.json", "One search iteration", table(record))


if __name__ == "__main__":
    main()
