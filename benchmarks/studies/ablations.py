"""The paper's ablations in kind: what masks are conditioned on, which layers they sit on, and how they change in training.

Every variant trains as the masks of Table 1 do, on the same pictures and noise, at one rate and from the same initial
logit, so that only what the row names differs. Finished cells are kept, so the same call again goes on.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.world import ArtRuns, Sampling, World, cell, load_base
from maskunet.attaching.attachment import attach
from maskunet.errors import DataError
from maskunet.maskers import LowRankMaskerConfig, MaskGeneratorConfig, TrainableConfig, build_masker
from maskunet.version import __version__
from maskunet.zoo.dataset import POOL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """A row: what it has in place of the study's settings.

    Args:
        mask: settings of the masks; those of `logit` aside.
        rate: learning rate, as a share of the study's.
        seeds: how many training seeds it gets at most.
        logit: every mask logit at the start; the study's if None.
        training: further settings of the trainer.
    """

    mask: TrainableConfig = field(default_factory=MaskGeneratorConfig)
    rate: float = 1.0
    seeds: int | None = None
    logit: float | None = None
    training: dict[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "decoder attention, both": Variant(),
    "without timestep": Variant(MaskGeneratorConfig(use_timestep=False)),
    "without sample": Variant(MaskGeneratorConfig(use_sample=False)),
    "at 0.3 of the rate": Variant(rate=0.3),
    "temperature 0.3": Variant(MaskGeneratorConfig(tau=0.3)),
    "from logits 1": Variant(logit=1.0),
    "towards density 0.97": Variant(training={"target_density": 0.97}),
    "low rank, r = 16": Variant(LowRankMaskerConfig()),
    "low rank, r = 16, at 0.5 of the rate": Variant(LowRankMaskerConfig(), 0.5),
    "low rank, r = 16, at 0.3 of the rate": Variant(LowRankMaskerConfig(), 0.3),
    "low rank, r = 32": Variant(LowRankMaskerConfig(rank=32)),
    "low rank, r = 8": Variant(LowRankMaskerConfig(rank=8)),
    "low rank, r = 4": Variant(LowRankMaskerConfig(rank=4)),
    "low rank, r = 2": Variant(LowRankMaskerConfig(rank=2)),
    "low rank, hidden 16": Variant(LowRankMaskerConfig(hidden=16)),
    "low rank, hidden 256": Variant(LowRankMaskerConfig(hidden=256)),
    "low rank, without timestep": Variant(LowRankMaskerConfig(use_timestep=False)),
    "low rank, without sample": Variant(LowRankMaskerConfig(use_sample=False)),
    "decoder attention + conv": Variant(MaskGeneratorConfig(targets="decoder-attention-conv")),
    # Half an hour a seed, and 11 GiB.
    "all layers": Variant(MaskGeneratorConfig(targets="all"), seeds=1),
}
REFERENCE = "decoder attention, both"


@dataclass(frozen=True)
class AblationConfig:
    """Settings of the ablations.

    Args:
        seeds: training seeds.
        steps: optimiser steps.
        learning_rate: rate of every variant.
        initial_logit: every mask logit at the start.
        train_samples: art pictures to train on.
        prompts: test prompts, a picture each.
        reference_pictures: real pictures that distances are measured to.
        snapshots: how often the first seed's reference run is looked at while it trains.
        num_inference_steps, guidance_scale: settings of generation.
    """

    seeds: int = 3
    steps: int = 100
    learning_rate: float = 1e-3
    initial_logit: float = 0.3
    train_samples: int = POOL
    prompts: int = 600
    reference_pictures: int = 2400
    snapshots: int = 8
    num_inference_steps: int = 8
    guidance_scale: float = 4.0


def reproduce_ablations(
    work: Path,
    config: AblationConfig | None = None,
    *,
    variants: Sequence[str] | None = None,
    known: Mapping[str, Variant] = VARIANTS,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run every cell that is missing and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call again goes on there.
        config: settings.
        variants: rows beside the reference; all if None.
        known: what those names mean; the reference among them.
        say: told of each cell as it is finished.
    """
    config = config or AblationConfig()
    if unknown := set(variants or ()) - set(known):
        raise DataError(f"expected variants among {', '.join(known)}, got {', '.join(sorted(unknown))}")
    names = [n for n in known if variants is None or n == REFERENCE or n in variants]
    work = folder_of(work, config)
    base = load_base()
    world = World(base, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_pictures)
    runs = ArtRuns(base, work / "runs", config.train_samples)
    every = max(1, config.steps // config.snapshots)

    def measured(pipe: Any, seed: int) -> dict[str, Any]:
        found = world.measure(pipe, seed, "test", prompts=config.prompts, pictures=1)
        return found | {"density": world.density(pipe)}

    def settings(name: str) -> TrainableConfig:
        own = known[name]
        return replace(own.mask, initial_logit=config.initial_logit if own.logit is None else own.logit)

    def trained(name: str, seed: int) -> dict[str, Any]:
        pipe, run = runs.train(
            cell_name(name, seed),
            "mask",
            rate=config.learning_rate * known[name].rate,
            seed=seed,
            steps=config.steps,
            mask=settings(name),
            config={"validation_steps": every, "checkpointing_steps": every, "checkpoints_total_limit": None}
            | known[name].training,
        )
        last = run.stats[-1]
        own = {"art_gain": last["gain"], "art_gain_ci95": last["gain_ci95"]}
        curve = [{k: s[k] for k in ("step", "gain", "density")} for s in run.stats if "gain" in s]
        own["parameters"] = sum(p.numel() for p in run.masker.parameters())
        return measured(pipe, seed) | own | {"curve": curve}

    def snapshot(step: int) -> dict[str, Any]:
        pipe = copy.deepcopy(base)
        if step:
            masker = build_masker(pipe.unet, settings(REFERENCE), seed=0)
            path = work / "runs" / cell_name(REFERENCE, 0) / f"checkpoint-{step:06d}" / "state.pt"
            masker.load_state_dict(torch.load(path, weights_only=True)["trained"])
            attach(pipe, masker.eval())
        return measured(pipe, 0) | {"step": step}

    cells: dict[str, list[dict[str, Any]]] = {"base": []}
    for seed in range(config.seeds):
        cells["base"].append(cell(work / "cells" / f"base-{seed}.json", partial(measured, base, seed)))
        for name in names:
            if seed >= (known[name].seeds or config.seeds):
                continue
            made = cell(work / "cells" / f"{cell_name(name, seed)}.json", partial(trained, name, seed))
            cells.setdefault(name, []).append(made)
            say(f"{name}, seed {seed}: art gain {made['art_gain']:.4f}, FID {made['fid']['clip']:.3f}")
    steps = [0, *(s["step"] for s in cells[REFERENCE][0]["curve"])]
    curve = []
    for step in steps:
        curve.append(cell(work / "snapshots" / f"{step:06d}.json", partial(snapshot, step)))
        say(f"step {step}: FID {curve[-1]['fid']['clip']:.3f}")
    return {"config": asdict(config), "cells": cells, "snapshots": curve, "version": __version__}


def folder_of(work: Path, config: AblationConfig) -> Path:
    """Return the folder of the cells below `work`: other settings, other cells."""
    return work / "-".join(f"{v}" for v in asdict(config).values())


def cell_name(name: str, seed: int) -> str:
    """Return the name of a row's files, without their endings."""
    return f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def shortened(config: AblationConfig, share: float) -> AblationConfig:
    """Return settings with a share of steps, samples and prompts, to try the command out."""

    def cut(count: int) -> int:
        return max(12, round(count * share))

    return replace(
        config,
        seeds=max(2, round(config.seeds * share)),
        steps=max(2, round(config.steps * share)),
        snapshots=2,
        train_samples=cut(config.train_samples),
        prompts=cut(config.prompts),
        reference_pictures=max(64, cut(config.reference_pictures)),
    )
