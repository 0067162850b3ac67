"""The paper's ablations on the bundled model: what masks are conditioned on, which layers they mask, how they develop.

Every variant trains as the masks of Table 1 do: on the same images and noise, at one learning rate, from the same initial
logit. A row differs from the reference only in what its name says. Finished cells are saved: the same call resumes.
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

from benchmarks.studies.world import ArtRuns, Sampling, World, cached_cell, load_base
from maskunet.attaching import attach
from maskunet.errors import SettingError
from maskunet.maskers import LowRankMaskerConfig, Masker, MaskGeneratorConfig, build_masker
from maskunet.maskers.conditional import ConditionalConfig
from maskunet.version import __version__
from maskunet.zoo.dataset import TRAIN_SAMPLES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """A row of the table: its differences from the study's settings.

    Args:
        mask: settings of the masks, without the initial logit.
        rate: learning rate as a multiple of the study's.
        seeds: upper bound of the number of training seeds; None for the study's number.
        logit: every mask logit at the start; None for the study's.
        training: further settings of the trainer.
    """

    mask: ConditionalConfig = field(default_factory=MaskGeneratorConfig)
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
    # Half an hour per seed, and 11 GiB.
    "all layers": Variant(MaskGeneratorConfig(targets="all"), seeds=1),
}
REFERENCE = "decoder attention, both"


@dataclass(frozen=True)
class AblationConfig:
    """Settings of the ablations.

    Main:
        seeds: number of training seeds.
        steps: optimiser steps.
        learning_rate: learning rate of the reference.
        initial_logit: every mask logit at the start.
        train_samples: number of art images to train on.

    Evaluation:
        prompts: number of test prompts, one image each.
        reference_images: number of real images in a distance.
        snapshots: how often the first seed's reference run is evaluated while it trains.
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
    """

    seeds: int = 3
    steps: int = 100
    learning_rate: float = 1e-3
    initial_logit: float = 0.3
    train_samples: int = TRAIN_SAMPLES
    prompts: int = 600
    reference_images: int = 2400
    snapshots: int = 8
    num_inference_steps: int = 8
    guidance_scale: float = 4.0


def run_ablations(
    work: Path,
    config: AblationConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    variants: Mapping[str, Variant] = VARIANTS,
    build: Callable[..., Masker] = build_masker,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run every missing cell and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call resumes there.
        config: settings.
        names: variants to run in addition to the reference; None runs all.
        variants: variants by name, with the reference.
        build: builds a masker from U-Net, config and `seed`.
        log: receives one line per finished cell.

    Raises:
        SettingError: a name is unknown.
    """
    config = config or AblationConfig()
    if unknown := set(names or ()) - set(variants):
        raise SettingError(f"expected variants among {', '.join(variants)}, got {', '.join(sorted(unknown))}")
    rows = [n for n in variants if names is None or n == REFERENCE or n in names]
    work = cells_folder(work, config)
    base = load_base()
    world = World(base, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_images)
    runs = ArtRuns(base, work / "runs", config.train_samples)
    every = max(1, config.steps // config.snapshots)

    def measure(pipe: Any, seed: int) -> dict[str, Any]:
        cell = world.measure(pipe, seed, "test", prompts=config.prompts, images_per_prompt=1)
        return cell | {"density": world.density(pipe)}

    def mask_config(name: str) -> ConditionalConfig:
        logit = variants[name].logit
        return replace(variants[name].mask, initial_logit=config.initial_logit if logit is None else logit)

    def train_and_measure(name: str, seed: int) -> dict[str, Any]:
        pipe, run = runs.train(
            cell_name(name, seed),
            "mask",
            rate=config.learning_rate * variants[name].rate,
            seed=seed,
            steps=config.steps,
            mask=mask_config(name),
            build=build,
            config={"validation_steps": every, "checkpointing_steps": every, "checkpoints_total_limit": None}
            | variants[name].training,
        )
        return measure(pipe, seed) | {
            "art_gain": run.stats[-1]["gain"],
            "art_gain_ci95": run.stats[-1]["gain_ci95"],
            "parameters": sum(p.numel() for p in run.masker.parameters()),
            "curve": [{k: s[k] for k in ("step", "gain", "density")} for s in run.stats if "gain" in s],
        }

    def measure_snapshot(step: int) -> dict[str, Any]:
        pipe = copy.deepcopy(base)
        if step:
            masker = build(pipe.unet, mask_config(REFERENCE), seed=0)
            path = work / "runs" / cell_name(REFERENCE, 0) / f"checkpoint-{step:06d}" / "state.pt"
            masker.load_state_dict(torch.load(path, weights_only=True)["trained"])
            attach(pipe, masker.eval())
        return measure(pipe, 0) | {"step": step}

    cells: dict[str, list[dict[str, Any]]] = {"base": []}
    for seed in range(config.seeds):
        cells["base"].append(cached_cell(work / "cells" / f"base-{seed}.json", partial(measure, base, seed)))
        for name in rows:
            if seed >= (variants[name].seeds or config.seeds):
                continue
            path = work / "cells" / f"{cell_name(name, seed)}.json"
            cell = cached_cell(path, partial(train_and_measure, name, seed))
            cells.setdefault(name, []).append(cell)
            log(f"{name}, seed {seed}: art gain {cell['art_gain']:.4f}, FID {cell['fid']['clip']:.3f}")
    snapshots = []
    for step in [0, *(s["step"] for s in cells[REFERENCE][0]["curve"])]:
        snapshots.append(cached_cell(work / "snapshots" / f"{step:06d}.json", partial(measure_snapshot, step)))
        log(f"step {step}: FID {snapshots[-1]['fid']['clip']:.3f}")
    return {"config": asdict(config), "cells": cells, "snapshots": snapshots, "version": __version__}


def cells_folder(work: Path, config: AblationConfig) -> Path:
    """Return the folder of the cells of these settings.

    Args:
        work: the study's folder.
        config: settings.
    """
    return work / "-".join(f"{v}" for v in asdict(config).values())


def cell_name(name: str, seed: int) -> str:
    """Return the file name of a cell, without its suffix.

    Args:
        name: the variant.
        seed: the training seed.
    """
    return f"{name.replace(',', '').replace(' ', '-')}-{seed}"
