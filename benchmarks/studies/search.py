"""Search of masks and its rivals on the bundled model: reward, compute, and the judge that no method sees.

Every method gets the same prompts, starting seeds and reward. Compute is counted and shown beside: all floating point
operations of a run (U-Net, decoder, reward), over those of one guided U-Net call on one sample. Finished cells are kept, so
the same call again goes on; a method whose settings have changed is measured anew.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.studies import rivals
from benchmarks.studies.world import Sampling, Split, World, accuracy_by_task, cell, right
from maskunet import rewards, zoo
from maskunet.metrics.distances import frechet_distance
from maskunet.relaxation import derive_seed
from maskunet.rewards.base import Reward
from maskunet.sampling import StepwiseSampler
from maskunet.searching import SearchConfig
from maskunet.searching import search as search_masks
from maskunet.shapes.scenes import held_out_prompts
from maskunet.version import __version__
from maskunet.zoo.rewards import bundled_weights

logger = logging.getLogger(__name__)

#: Pictures at once where memory is measured.
MEMORY_BATCH = 8

Method = Callable[[Any, Sequence[str], Sequence[int], Reward], Tensor]


@dataclass(frozen=True)
class SearchStudy:
    """Settings of the comparison.

    Args:
        seeds: sets of starting noises.
        prompts: held-out prompts.
        split: "val" to choose settings on, "test" to report.
        num_inference_steps, guidance_scale: settings of generation, DDIM.
        batch_size: prompts at once.
        reference_pictures: real pictures that FID is measured to.
        reward: name of the reward that methods see.
    """

    seeds: int = 3
    prompts: int = 60
    split: Split = "test"
    num_inference_steps: int = 15
    guidance_scale: float = 4.0
    batch_size: int = 60
    reference_pictures: int = 1200
    reward: str = "shapes"


def masks(**changes: Any) -> Method:
    """Return mask search with these settings as a method."""
    return partial(_masks, config=_settings(changes))


def _settings(changes: dict[str, Any]) -> SearchConfig:
    own = {k: v for k, v in changes.items() if k != "preset"}
    return SearchConfig.preset(changes.get("preset", "default"), compare_base=False, **own)


def _masks(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    config: SearchConfig,
    **options: Any,
) -> Tensor:
    return search_masks(pipe, prompts, reward, replace(config, **options), seeds=seeds, progress=False).tensor


def best_then_masks(*, count: int, **changes: Any) -> Method:
    """Return the method that searches masks from the best of `count` noises, and keeps the better picture of the two."""
    return partial(_best_then_masks, count=count, config=_settings(changes))


def _best_then_masks(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    count: int,
    config: SearchConfig,
    **options: Any,
) -> Tensor:
    chosen, pictures, rewards = rivals.best_noises(pipe, prompts, seeds, reward, count=count, **options)
    found = search_masks(pipe, prompts, reward, replace(config, **options), seeds=chosen, progress=False)
    better = found.rewards > rewards
    return torch.where(better[:, None, None, None], found.tensor, pictures)


def fingerprint(method: Method) -> str:
    """Return a method's settings as a text, to tell a finished cell of other settings."""
    if isinstance(method, partial):
        settings = {k: fingerprint(v) if callable(v) else v for k, v in method.keywords.items()}
        return f"{method.func.__name__} {sorted(settings.items())}"
    return getattr(method, "__name__", repr(method))


def _plain(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, **options: Any) -> Tensor:
    return rivals.plain(pipe, prompts, seeds, **options)


#: Methods by name, at about the compute of the search's default; the paper's own settings take four times that.
METHODS: dict[str, Method] = {
    "plain": _plain,
    "best of 6": partial(rivals.best_of_n, count=6),
    "particles, 5": partial(rivals.particles, count=5),
    "random masks, 6": partial(rivals.random_masks, count=6),
    "noise optimisation": partial(rivals.noise_optimisation, iterations=14),
    "gradient guidance": partial(rivals.gradient_guidance, scale=0.1),
    "drafts, 11": masks(candidates=11, iterations=0),
    "drafts and masks, default": masks(),
    "masks alone": masks(preset="masks"),
    "masks, paper": masks(preset="paper"),
}


def run_study(
    work: Path,
    study: SearchStudy | None = None,
    methods: dict[str, Method] | None = None,
    *,
    memory: bool = False,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run every cell that is missing and return the whole record.

    Args:
        work: folder of the finished cells; the same call again goes on there.
        study: settings.
        methods: by name; `METHODS` if None.
        memory: also measure each method's peak memory, in a process of its own.
        say: told of each cell as it is finished.

    Raises:
        RewardError: the reward is no bundled one.
    """
    study, methods = study or SearchStudy(), METHODS if methods is None else methods
    weights = reward_digest(study.reward)
    work = work / "-".join(f"{v}" for v in asdict(study).values())  # other settings, other cells
    pipe, reward, referee = zoo.load("shapes"), rewards.load(study.reward), rewards.load("shapes-referee")
    world = World(pipe, Sampling(study.num_inference_steps, study.guidance_scale), study.reference_pictures)
    options = {"num_inference_steps": study.num_inference_steps, "guidance_scale": study.guidance_scale}
    prompts = held_out_prompts(study.prompts, study.split)
    texts = [p.prompt for p in prompts]

    def measured(method: Method, seed: int) -> dict[str, Any]:
        seeds = [derive_seed("search", study.split, seed, i) % 2**31 for i in range(len(texts))]
        start, made = time.monotonic(), []
        for first in range(0, len(texts), study.batch_size):
            rows = slice(first, first + study.batch_size)
            made.append(method(pipe, texts[rows], seeds[rows], reward, **options))
        seconds = time.monotonic() - start
        pictures = torch.cat(made)
        features = world.features(pictures)
        each: dict[str, list[Any]] = {"right": right(pictures, prompts)}
        each |= {n: by_prompt(r, pictures, texts) for n, r in (("reward", reward), ("referee", referee))}
        return {
            "n": len(pictures),
            **{n: statistics.fmean(each[n]) for n in ("reward", "referee")},
            "each": each,  # by prompt, for paired differences
            "accuracy": accuracy_by_task(pictures, prompts),
            "fid": {s: frechet_distance(x, world.real[study.split][s]) for s, x in features.items()},
            "seconds": seconds,
            "forwards": forward_equivalents(pipe, method, reward, options),
        }

    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for seed in range(study.seeds):
        for name, method in methods.items():
            path = work / "cells" / f"{_file_name(name)}-{seed}.json"
            found = cell(path, partial(measured, method, seed), f"{fingerprint(method)} {weights}")
            cells[name].append(found)
            say(
                f"{name}, seed {seed}: reward {found['reward']:.4f}, referee {found['referee']:.4f}, "
                f"overall {found['accuracy']['overall']:.3f}, FID {found['fid']['clip']:.2f}, "
                f"{found['forwards']:.0f} forwards, {found['seconds']:.0f} s"
            )
    record = {"study": asdict(study), "cells": cells, "version": __version__}
    if memory:
        record["memory"] = {
            name: cell(
                work / "cells" / f"{_file_name(name)}-memory.json",
                partial(_memory_apart, method, study),
                f"{fingerprint(method)} {weights}",
            )["peak_gib"]
            for name, method in methods.items()
        }
    return record


def _file_name(method: str) -> str:
    return method.replace(" ", "-").replace(",", "")


def _memory_apart(method: Method, study: SearchStudy) -> dict[str, Any]:
    """Return the peak of a process that makes one batch of pictures by the method."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return {"peak_gib": apart.submit(peak_memory, method, study).result()}


def peak_memory(method: Method, study: SearchStudy) -> float:
    """Side `MEMORY_BATCH` pictures at once by a method and return the peak of this process in GiB."""
    pipe, reward = zoo.load("shapes"), rewards.load(study.reward)
    texts = [p.prompt for p in held_out_prompts(MEMORY_BATCH, study.split)]
    options = {"num_inference_steps": study.num_inference_steps, "guidance_scale": study.guidance_scale}
    method(pipe, texts, list(range(MEMORY_BATCH)), reward, **options)
    return peak_of_process()


def peak_of_process() -> float:
    """Return the peak of without_offload memory of this process in GiB, or NaN where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    # getrusage would also count what the parent held when it started this process.
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(peak) / 2**20, 3)


def reward_digest(name: str) -> str:
    """Return what tells a cell of another reward: the start of a hash of a bundled one's weights.

    Raises:
        RewardError: the reward is no bundled one.
    """
    return hashlib.sha256((bundled_weights(name) / "model.safetensors").read_bytes()).hexdigest()[:12]


@torch.no_grad()
def by_prompt(reward: Reward, pictures: Tensor, prompts: Sequence[str]) -> list[float]:
    """Return the reward of each of the pictures (N, 3, H, W)."""
    scores = [reward(p, prompts[i * 100 : i * 100 + len(p)]) for i, p in enumerate(pictures.split(100))]
    return [round(r, 6) for r in torch.cat(scores).tolist()]


def mean_reward(reward: Reward, pictures: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean reward of pictures (N, 3, H, W)."""
    return statistics.fmean(by_prompt(reward, pictures, prompts))


def forward_equivalents(pipe: Any, method: Method, reward: Reward, options: dict[str, Any]) -> float:
    """Return a method's operations on one prompt over those of one guided U-Net call."""
    prompt = ["a red circle"]
    sampler = StepwiseSampler(pipe, prompt, seeds=[0], **options)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        sampler.predict()
    with FlopCounterMode(display=False) as whole:
        method(pipe, prompt, [0], reward, **options)
    return whole.get_total_flops() / one.get_total_flops()
