"""Mask search and its rivals on the bundled model: reward, compute, and a judge that no method sees.

Every method gets the same prompts, starting seeds and reward. Compute is counted: all floating point operations of a run
(U-Net, decoder, reward) over those of one guided U-Net call on one sample. Finished cells are saved: the same call
resumes, and measures a method again if its settings have changed.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.records import rounded
from benchmarks.studies.generation_methods import METHODS, GenerationMethod, fingerprint
from benchmarks.studies.world import Sampling, Split, World, accuracy_by_task, cached_cell, match_prompts
from maskunet import rewards, zoo
from maskunet.relaxation import derive_seed
from maskunet.rewards.base import Reward
from maskunet.sampling import StepwiseSampler
from maskunet.shapes.scenes import held_out_prompts
from maskunet.version import __version__
from maskunet.zoo.rewards import bundled_weights

logger = logging.getLogger(__name__)

#: Images per call in the measurement of memory.
MEMORY_BATCH = 8


@dataclass(frozen=True)
class SearchStudyConfig:
    """Settings of the comparison.

    Args:
        seeds: number of sets of starting noises.
        prompts: number of held-out prompts.
        split: "val" to select settings, "test" to report.
        num_inference_steps: denoising steps (DDIM).
        guidance_scale: strength of classifier-free guidance.
        batch_size: prompts per call.
        reference_images: number of real images in a distance.
        reward: name of the bundled reward that methods optimise.
    """

    seeds: int = 3
    prompts: int = 60
    split: Split = "test"
    num_inference_steps: int = 15
    guidance_scale: float = 4.0
    batch_size: int = 60
    reference_images: int = 1200
    reward: str = "shapes"


def run_search_study(
    work: Path,
    config: SearchStudyConfig | None = None,
    methods: dict[str, GenerationMethod] | None = None,
    *,
    memory: bool = False,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run every missing cell and return the whole record.

    Args:
        work: folder of the finished cells; the same call resumes there.
        config: settings.
        methods: methods by name; `METHODS` if None.
        memory: also measure each method's peak memory, in a separate process.
        log: receives one line per finished cell.

    Raises:
        RewardError: the reward is not a bundled one.
    """
    config, methods = config or SearchStudyConfig(), METHODS if methods is None else methods
    digest = reward_digest(config.reward)
    work = work / "-".join(f"{v}" for v in asdict(config).values())  # settings name the folder, so cells never mix
    pipe, reward, referee = zoo.load("shapes"), rewards.load(config.reward), rewards.load("shapes-referee")
    world = World(pipe, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_images)
    options = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
    prompts = held_out_prompts(config.prompts, config.split)
    texts = [p.prompt for p in prompts]

    def measure(method: GenerationMethod, seed: int) -> dict[str, Any]:
        seeds = [derive_seed("search", config.split, seed, i) % 2**31 for i in range(len(texts))]
        start, batches = time.monotonic(), []
        for first in range(0, len(texts), config.batch_size):
            rows = slice(first, first + config.batch_size)
            batches.append(method(pipe, texts[rows], seeds[rows], reward, **options))
        seconds = time.monotonic() - start
        images = torch.cat(batches)
        values = {n: rewards_of(r, images, texts) for n, r in (("reward", reward), ("referee", referee))}
        # One value per prompt, for paired differences.
        each: dict[str, list[Any]] = {"correct": [int(m) for m in match_prompts(images, prompts)]}
        return {
            "n": len(images),
            **{name: statistics.fmean(v) for name, v in values.items()},
            "each": each | {name: rounded(v) for name, v in values.items()},
            "accuracy": accuracy_by_task(images, prompts),
            "fid": world.distances(images, config.split),
            "seconds": seconds,
            "forwards": forward_equivalents(pipe, method, reward, options),
        }

    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for seed in range(config.seeds):
        for name, method in methods.items():
            path = work / "cells" / f"{_file_name(name)}-{seed}.json"
            cell = dict(cached_cell(path, partial(measure, method, seed), f"{fingerprint(method)} {digest}"))
            del cell["settings"]  # the record has them once per method
            cells[name].append(cell)
            log(
                f"{name}, seed {seed}: reward {cell['reward']:.4f}, referee {cell['referee']:.4f}, "
                f"overall {cell['accuracy']['overall']:.3f}, FID {cell['fid']['clip']:.2f}, "
                f"{cell['forwards']:.0f} forwards, {cell['seconds']:.0f} s"
            )
    record = {
        "config": asdict(config),
        "reward_weights": digest,
        "methods": {name: fingerprint(method) for name, method in methods.items()},
        "cells": cells,
        "version": __version__,
    }
    if memory:
        record["memory"] = {
            name: cached_cell(
                work / "cells" / f"{_file_name(name)}-memory.json",
                partial(_memory_in_process, method, config),
                f"{fingerprint(method)} {digest}",
            )["peak_gib"]
            for name, method in methods.items()
        }
    return record


def _file_name(method: str) -> str:
    return method.replace(" ", "-").replace(",", "")


def _memory_in_process(method: GenerationMethod, config: SearchStudyConfig) -> dict[str, Any]:
    """Return the peak of a process that makes one batch of images by the method."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return {"peak_gib": pool.submit(peak_memory, method, config).result()}


def peak_memory(method: GenerationMethod, config: SearchStudyConfig) -> float:
    """Make `MEMORY_BATCH` images by a method and return the peak of this process in GiB.

    Args:
        method: the method.
        config: settings of the study.
    """
    pipe, reward = zoo.load("shapes"), rewards.load(config.reward)
    texts = [p.prompt for p in held_out_prompts(MEMORY_BATCH, config.split)]
    options = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
    method(pipe, texts, list(range(MEMORY_BATCH)), reward, **options)
    return process_peak()


def process_peak() -> float:
    """Return the peak resident memory of this process in GiB; NaN on a system without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    # getrusage would include the parent's memory at the start of this process.
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(peak) / 2**20, 3)


def reward_digest(name: str) -> str:
    """Return the start of a hash of a bundled reward's weights; saved cells of other weights are measured again.

    Args:
        name: the reward.

    Raises:
        RewardError: the reward is not a bundled one.
    """
    return hashlib.sha256((bundled_weights(name) / "model.safetensors").read_bytes()).hexdigest()[:12]


@torch.no_grad()
def rewards_of(reward: Reward, images: Tensor, prompts: Sequence[str]) -> list[float]:
    """Return the reward of each image.

    Args:
        reward: the reward.
        images: (N, 3, H, W) in [0, 1].
        prompts: N prompts.
    """
    values = [reward(x, prompts[i * 100 : i * 100 + len(x)]) for i, x in enumerate(images.split(100))]
    return torch.cat(values).tolist()


def forward_equivalents(pipe: Any, method: GenerationMethod, reward: Reward, options: dict[str, Any]) -> float:
    """Return a method's operations on one prompt over those of one guided U-Net call.

    Args:
        pipe: the pipeline.
        method: the method.
        reward: the reward.
        options: of `StepwiseSampler`.
    """
    prompt = ["a red circle"]
    sampler = StepwiseSampler(pipe, prompt, seeds=[0], **options)
    with FlopCounterMode(display=False) as one_call, torch.no_grad():
        sampler.predict()
    with FlopCounterMode(display=False) as run:
        method(pipe, prompt, [0], reward, **options)
    return run.get_total_flops() / one_call.get_total_flops()
