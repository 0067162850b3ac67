"""The paper's Table 1 in kind: fine-tune on the art domain, evaluate zero-shot on the first world.

The paper trains on laion-art and evaluates on COCO; here `shapes-art` plays the first and `shapes` the second. Every
method sees the same data, noise and steps; its learning rate is chosen on the validation split. A cell is one method
with one training seed; the same seed means the same noise for every method, so differences are paired. Finished cells
are kept, so the same call again goes on.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.studies.world import ArtRuns, Sampling, Split, World, cell, load_base
from maskunet.attaching.attachment import attach
from maskunet.maskers import MaskGeneratorConfig, RandomMasks
from maskunet.version import __version__
from maskunet.zoo.dataset import POOL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One row of the table: the trainer's method, its options and the rates to choose among."""

    method: str | None
    rates: tuple[float, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


SIDES: dict[str, Side] = {
    "base": Side(None),
    "full": Side("full", (1e-6, 1e-5, 1e-4)),
    "full + dropout": Side("full", (1e-6, 1e-5, 1e-4), (("dropout", 0.1),)),
    "LoRA": Side("lora", (1e-5, 1e-4, 1e-3)),
    "masks": Side("mask", (3e-4, 1e-3, 3e-3)),
    "masks + LoRA": Side("mask+lora", (1e-5, 1e-4, 1e-3)),
    "random masks": Side(None, (), (("density", 0.5),)),
}


@dataclass(frozen=True)
class Table1Config:
    """Settings of the table.

    Args:
        seeds: training seeds.
        steps: optimiser steps of each method.
        train_samples: art pictures to train on.
        prompts: test prompts; with `pictures` each.
        pictures: pictures a prompt.
        validation_prompts: prompts that learning rates are chosen on, a picture each.
        reference_pictures: real pictures that distances are measured to.
        initial_logit: every mask logit at the start.
        num_inference_steps, guidance_scale: settings of generation.
    """

    seeds: int = 3
    steps: int = 100
    train_samples: int = POOL
    prompts: int = 600
    pictures: int = 5
    validation_prompts: int = 300
    reference_pictures: int = 2400
    initial_logit: float = 0.3
    num_inference_steps: int = 8
    guidance_scale: float = 4.0


def reproduce_table1(
    work: Path, config: Table1Config | None = None, *, say: Callable[[str], None] = logger.info
) -> dict[str, Any]:
    """Run every cell that is missing and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call again goes on there.
        config: settings.
        say: told of each cell as it is finished.
    """
    config = config or Table1Config()
    work = work / "-".join(f"{v}" for v in asdict(config).values())  # other settings, other cells
    base = load_base()
    world = World(base, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_pictures)
    runs = ArtRuns(base, work / "runs", config.train_samples)
    counts: dict[Split, dict[str, int]] = {
        "test": {"prompts": config.prompts, "pictures": config.pictures},
        "val": {"prompts": config.validation_prompts, "pictures": 1},
    }

    def trained(name: str, rate: float, seed: int, split: Split) -> dict[str, Any]:
        side = SIDES[name]
        assert side.method is not None
        pipe, run = runs.train(
            f"{name.replace(' ', '')}-{rate:g}-{seed}",
            side.method,
            rate=rate,
            seed=seed,
            steps=config.steps,
            mask=MaskGeneratorConfig(initial_logit=config.initial_logit),
            **dict(side.options),
        )
        own = {"density": world.density(pipe), "learning_rate": rate, "art_gain": run.stats[-1]["gain"]}
        return world.measure(pipe, seed, split, **counts[split]) | own

    def untrained(name: str, seed: int) -> dict[str, Any]:
        pipe = copy.deepcopy(base)
        if name == "random masks":
            attach(pipe, RandomMasks.for_unet(pipe.unet, seed=seed, **dict(SIDES[name].options)))
        return world.measure(pipe, seed, "test", **counts["test"]) | {"density": world.density(pipe)}

    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    rates: dict[str, dict[str, Any]] = {}
    for name, side in SIDES.items():
        if side.method is None:
            continue
        rates[name] = {}
        for rate in side.rates:
            path = work / "rates" / f"{name.replace(' ', '')}-{rate:g}.json"
            found = rates[name][f"{rate:g}"] = cell(path, partial(trained, name, rate, 0, "val"))
            say(f"{name} at {rate:g}: validation FID {found['fid']['clip']:.3f}, art gain {found['art_gain']:.4f}")
    for seed in range(config.seeds):
        for name, side in SIDES.items():
            path = work / "cells" / f"{name.replace(' ', '')}-{seed}.json"
            if side.method is None:
                made = cell(path, partial(untrained, name, seed))
            else:
                rate = float(min(rates[name], key=lambda r: rates[name][r]["fid"]["clip"]))
                made = cell(path, partial(trained, name, rate, seed, "test"))
            cells[name].append(made)
            say(f"{name}, seed {seed}: FID {made['fid']['clip']:.3f}, overall {made['accuracy']['overall']:.3f}")
    return {"config": asdict(config), "rates": rates, "cells": cells, "version": __version__}


def shortened(config: Table1Config, share: float) -> Table1Config:
    """Return settings with a share of steps, samples and prompts, to try the command out."""

    def cut(count: int) -> int:
        return max(12, round(count * share))

    return replace(
        config,
        steps=max(2, round(config.steps * share)),
        train_samples=cut(config.train_samples),
        prompts=cut(config.prompts),
        validation_prompts=cut(config.validation_prompts),
        reference_pictures=max(64, cut(config.reference_pictures)),
        pictures=max(1, round(config.pictures * share)),
        seeds=max(2, round(config.seeds * share)),
    )
