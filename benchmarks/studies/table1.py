"""The paper's Table 1 on the bundled model: fine-tune on the art domain, evaluate zero-shot on the first domain.

The paper trains on laion-art and evaluates on COCO; here `shapes-art` plays the first and `shapes` the second. Every
method sees the same data, noise and steps; its learning rate is selected on the validation split. A cell is one method
with one training seed; the same seed gives every method the same noise, so differences are paired. Finished cells are
saved: the same call resumes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.studies.world import ArtRuns, Sampling, Split, World, cached_cell, load_base
from maskunet.attaching import attach
from maskunet.maskers import MaskGeneratorConfig, RandomMasks
from maskunet.version import __version__
from maskunet.zoo.dataset import TRAIN_SAMPLES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableRow:
    """One row of the table.

    Args:
        method: the trainer's method; None trains nothing.
        rates: learning rates to select from.
        options: options of the method.
    """

    method: str | None
    rates: tuple[float, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


ROWS: dict[str, TableRow] = {
    "base": TableRow(None),
    "full": TableRow("full", (1e-6, 1e-5, 1e-4)),
    "full + dropout": TableRow("full", (1e-6, 1e-5, 1e-4), (("dropout", 0.1),)),
    "LoRA": TableRow("lora", (1e-5, 1e-4, 1e-3)),
    "masks": TableRow("mask", (3e-4, 1e-3, 3e-3)),
    "masks + LoRA": TableRow("mask+lora", (1e-5, 1e-4, 1e-3)),
    "random masks": TableRow(None, (), (("density", 0.5),)),
}


@dataclass(frozen=True)
class Table1Config:
    """Settings of the table.

    Args:
        seeds: number of training seeds.
        steps: optimiser steps of each method.
        train_samples: number of art images to train on.
        prompts: number of test prompts.
        images_per_prompt: images per test prompt.
        validation_prompts: number of prompts to select learning rates on, one image each.
        reference_images: number of real images in a distance.
        initial_logit: every mask logit at the start.
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
    """

    seeds: int = 3
    steps: int = 100
    train_samples: int = TRAIN_SAMPLES
    prompts: int = 600
    images_per_prompt: int = 5
    validation_prompts: int = 300
    reference_images: int = 2400
    initial_logit: float = 0.3
    num_inference_steps: int = 8
    guidance_scale: float = 4.0


def run_table1(
    work: Path, config: Table1Config | None = None, *, log: Callable[[str], None] = logger.info
) -> dict[str, Any]:
    """Run every missing cell and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call resumes there.
        config: settings.
        log: receives one line per finished cell.
    """
    config = config or Table1Config()
    work = work / "-".join(f"{v}" for v in asdict(config).values())  # settings name the folder, so cells never mix
    base = load_base()
    world = World(base, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_images)
    runs = ArtRuns(base, work / "runs", config.train_samples)
    counts: dict[Split, dict[str, int]] = {
        "test": {"prompts": config.prompts, "images_per_prompt": config.images_per_prompt},
        "val": {"prompts": config.validation_prompts, "images_per_prompt": 1},
    }

    def train_and_measure(name: str, rate: float, seed: int, split: Split) -> dict[str, Any]:
        row = ROWS[name]
        assert row.method is not None
        pipe, run = runs.train(
            f"{name.replace(' ', '')}-{rate:g}-{seed}",
            row.method,
            rate=rate,
            seed=seed,
            steps=config.steps,
            mask=MaskGeneratorConfig(initial_logit=config.initial_logit),
            **dict(row.options),
        )
        training = {"density": world.density(pipe), "learning_rate": rate, "art_gain": run.stats[-1]["gain"]}
        return world.measure(pipe, seed, split, **counts[split]) | training

    def measure_untrained(name: str, seed: int) -> dict[str, Any]:
        pipe = copy.deepcopy(base)
        if name == "random masks":
            attach(pipe, RandomMasks.for_unet(pipe.unet, seed=seed, **dict(ROWS[name].options)))
        return world.measure(pipe, seed, "test", **counts["test"]) | {"density": world.density(pipe)}

    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    rates: dict[str, dict[str, Any]] = {}
    for name, row in ROWS.items():
        if row.method is None:
            continue
        rates[name] = {}
        for rate in row.rates:
            path = work / "rates" / f"{name.replace(' ', '')}-{rate:g}.json"
            cell = rates[name][f"{rate:g}"] = cached_cell(path, partial(train_and_measure, name, rate, 0, "val"))
            log(f"{name} at {rate:g}: validation FID {cell['fid']['clip']:.3f}, art gain {cell['art_gain']:.4f}")
    for seed in range(config.seeds):
        for name, row in ROWS.items():
            path = work / "cells" / f"{name.replace(' ', '')}-{seed}.json"
            if row.method is None:
                cell = cached_cell(path, partial(measure_untrained, name, seed))
            else:
                rate = float(min(rates[name], key=lambda r: rates[name][r]["fid"]["clip"]))
                cell = cached_cell(path, partial(train_and_measure, name, rate, seed, "test"))
            cells[name].append(cell)
            log(f"{name}, seed {seed}: FID {cell['fid']['clip']:.3f}, overall {cell['accuracy']['overall']:.3f}")
    return {"config": asdict(config), "rates": rates, "cells": cells, "version": __version__}
