"""Guidance for free: masks and LoRA trained to do the work of guidance, and quality against network calls.

Every side is trained towards the same guided prediction of the base model, on the same data, for the same steps. Guidance's
scale is chosen on validation prompts. A guided step costs two calls of the network, every other one costs one. Finished
cells are saved: the same call resumes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import bounds
from benchmarks.studies.world import Sampling, Split, World, cached_cell, load_base, match_prompts
from maskunet.attaching import attach
from maskunet.errors import SettingError
from maskunet.maskers import LowRankMaskerConfig, MaskTable
from maskunet.merging import merge
from maskunet.metrics.intervals import Estimate, over_prompts
from maskunet.relaxation import derive_seed
from maskunet.sampling import generate
from maskunet.shapes.scenes import held_out_prompts
from maskunet.training import TrainConfig, build_method, train
from maskunet.version import __version__
from maskunet.zoo.dataset import encode_world

logger = logging.getLogger(__name__)

GUIDED, PLAIN = "guidance", "no guidance"
#: Every Linear and convolution of the blocks.
EVERY_LAYER = "every-layer"


@dataclass(frozen=True)
class TrainedSide:
    """A side that is trained.

    Args:
        kind: "constant" masks, "conditional" masks, or "lora".
        targets: the layers.
        rate: learning rate.
        initial_logit: every logit at the start.
    """

    kind: str
    targets: str
    rate: float
    initial_logit: float = 0.3


SIDES = {
    "constant masks, every layer": TrainedSide("constant", EVERY_LAYER, 1e-2),
    "conditional masks, decoder attention": TrainedSide("conditional", "decoder-attention", 2e-3),
    "LoRA, every layer": TrainedSide("lora", EVERY_LAYER, 1e-3),
    "LoRA, decoder attention": TrainedSide("lora", "decoder-attention", 1e-3),
}


@dataclass(frozen=True)
class GuidanceConfig:
    """Settings of the study.

    Args:
        seeds: training seeds of each side.
        steps: optimiser steps.
        train_batch_size: samples per step.
        guidance_scale: scale of the guidance that is imitated.
        scales: scales to choose guidance's own from, on validation prompts.
        calls: network calls per image; even numbers.
        prompts: number of test prompts, one image each.
        validation_prompts: number of validation prompts.
        reference_images: number of real images in a distance.
    """

    seeds: int = 3
    steps: int = 600
    train_batch_size: int = 48
    guidance_scale: float = 3.0
    scales: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 7.0)
    calls: tuple[int, ...] = (4, 6, 8, 10, 14, 20, 30)
    prompts: int = 600
    validation_prompts: int = 360
    reference_images: int = 2400


class GuidanceStudy:
    """The study's trained sides and cells.

    Args:
        work: folder of the runs and the finished cells.
        config: settings.
        log: receives one line per finished cell.
    """

    def __init__(self, work: Path, config: GuidanceConfig, log: Callable[[str], None]) -> None:
        self.work, self.config, self.log = work, config, log
        self.base = load_base()
        self.world = World(self.base, Sampling(1, 1.0), config.reference_images)
        self._data: Any = None

    def trained(self, name: str, seed: int) -> tuple[Any, dict[str, Any]]:
        """Return a copy of the base with a trained side, and figures of its training.

        Args:
            name: a key of `SIDES`.
            seed: training seed.
        """
        side, config = SIDES[name], self.config
        pipe = copy.deepcopy(self.base)
        if self._data is None:
            self._data = encode_world(self.base, "shapes")
        data, held_out = self._data
        training = TrainConfig(
            objective="guidance",
            guidance_scale=config.guidance_scale,
            max_train_steps=config.steps,
            train_batch_size=config.train_batch_size,
            gradient_accumulation_steps=1,
            learning_rate=side.rate,
            mixed_precision="no",
            gumbel=False,
            snr_gamma=5.0,
            validation_samples=min(256, len(held_out)),
            validation_batch_size=64,
            validation_steps=min(100, config.steps),
            checkpointing_steps=min(100, config.steps),
            checkpoints_total_limit=1,
            adam_weight_decay=0.01 if side.kind == "lora" else 0.0,
            seed=seed,
        )
        folder = self.work / "runs" / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
        if side.kind == "constant":
            method: Any = MaskTable.for_unet(pipe.unet, side.targets, initial_logit=side.initial_logit)
        else:
            mask = LowRankMaskerConfig(targets=side.targets, initial_logit=side.initial_logit)
            kind = "lora" if side.kind == "lora" else "mask"
            method = build_method(kind, pipe, mask, gumbel=False, seed=seed)
        run = train(pipe, method, data, training, folder, validation=held_out, progress=False)
        last = run.stats[-1]
        figures = {"gain": last["gain"]}
        figures["parameters"] = sum(p.numel() for p in getattr(run.method, "masker", pipe.unet).parameters())
        if side.kind == "lora":
            pipe.load_lora_weights(folder / "lora")
            figures["parameters"] = sum(p.numel() for n, p in pipe.unet.named_parameters() if "lora_" in n)
        else:
            figures["density"] = last["density"]
            # Merged, the model is as fast as the base.
            (merge if side.kind == "constant" else attach)(pipe, run.masker)
        return pipe, figures

    def measure(self, pipe: Any, split: Split, calls: int, scale: float) -> dict[str, Any]:
        """Return verdicts and FID of one side.

        Args:
            pipe: the pipeline.
            split: "val" or "test".
            calls: network calls per image.
            scale: strength of guidance; a step above 1 costs two calls.
        """
        count = self.config.prompts if split == "test" else self.config.validation_prompts
        prompts = held_out_prompts(count, split)
        images = generate(
            pipe,
            [prompt.prompt for prompt in prompts],
            seeds=[derive_seed("guidance", split, i) % 2**31 for i in range(count)],
            num_inference_steps=calls // 2 if scale > 1 else calls,
            guidance_scale=scale,
            batch_size=100,
            progress=False,
        ).tensor
        verdicts = match_prompts(images, prompts)
        return {"verdicts": "".join(str(int(v)) for v in verdicts), "fid": self.world.distances(images, split)["clip"]}

    def cell(self, name: str, split: Split, calls: int, scale: float, load: Callable[[], Any]) -> dict[str, Any]:
        """Return a cell, from its file if it was measured already.

        Args:
            name: name of the side, with its seed.
            split: "val" or "test".
            calls: network calls per image.
            scale: strength of guidance.
            load: returns the side's pipeline.
        """
        file = f"{split}-{name.replace(', ', '-').replace(' ', '_')}-{calls}-{scale:g}.json"
        cell = cached_cell(self.work / "cells" / file, lambda: self.measure(load(), split, calls, scale))
        self.log(f"{name}, {split}, {calls} calls: {share_right(cell['verdicts']):.3f} right, FID {cell['fid']:.2f}")
        return cell


def share_right(verdicts: str) -> float:
    """Return the mean over the six tasks of the share of right images; tasks alternate.

    Args:
        verdicts: one digit per prompt, 1 if the image matches it.
    """
    values = [[int(v) for v in verdicts[task::6]] for task in range(6)]
    return sum(sum(v) / len(v) for v in values) / 6


def run_guidance(
    work: Path,
    config: GuidanceConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run every missing cell and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call resumes there.
        config: settings.
        names: trained sides among `SIDES`; all if None.
        log: receives one line per finished cell.
    """
    config = config or GuidanceConfig()
    if unknown := set(names or ()) - set(SIDES):
        raise SettingError(f"expected sides among {', '.join(SIDES)}, got {', '.join(sorted(unknown))}")
    study = GuidanceStudy(work, config, log)
    validation = {
        scale: {
            calls: study.cell(GUIDED, "val", calls, scale, lambda: study.base)
            for calls in (min(config.calls, key=lambda c: abs(c - 10)), min(config.calls, key=lambda c: abs(c - 20)))
        }
        for scale in config.scales
    }
    best = max(config.scales, key=lambda s: sum(share_right(c["verdicts"]) for c in validation[s].values()))
    cells: dict[str, list[dict[int, dict[str, Any]]]] = {
        GUIDED: [{c: study.cell(GUIDED, "test", c, best, lambda: study.base) for c in config.calls}],
        PLAIN: [{c: study.cell(PLAIN, "test", c, 1.0, lambda: study.base) for c in config.calls}],
    }
    training: dict[str, list[dict[str, Any]]] = {}
    for seed in range(config.seeds):
        for name in names or SIDES:
            figures_of = work / "cells" / f"training-{name.replace(', ', '-').replace(' ', '_')}-{seed}.json"
            loaded: list[Any] = []

            def load(name: str = name, seed: int = seed, loaded: list[Any] = loaded) -> Any:
                if not loaded:
                    loaded.append(study.trained(name, seed))
                return loaded[0][0]

            by_calls = {c: study.cell(f"{name}, {seed}", "test", c, 1.0, load) for c in config.calls}
            cells.setdefault(name, []).append(by_calls)
            figures = cached_cell(figures_of, lambda load=load, loaded=loaded: (load(), loaded[0][1])[1])
            training.setdefault(name, []).append(
                {k: v for k, v in figures.items() if k not in ("settings", "minutes")}
            )
    return {
        "version": __version__,
        "config": asdict(config),
        "scale": best,
        "validation": {
            f"{scale:g}": {str(c): _figures(cell) for c, cell in row.items()} for scale, row in validation.items()
        },
        "training": training,
        "cells": {name: [_compared(row, cells, config) for row in rows] for name, rows in cells.items()},
    }


def _figures(cell: dict[str, Any]) -> dict[str, float]:
    return {"right": round(share_right(cell["verdicts"]), 4), "fid": round(cell["fid"], 3)}


def _compared(
    row: dict[int, dict[str, Any]], cells: dict[str, list[dict[int, dict[str, Any]]]], config: GuidanceConfig
) -> dict[str, Any]:
    """Return a side's figures by calls, with paired differences to guidance at equal and at twice the calls."""
    guided = cells[GUIDED][0]
    prompts = [prompt.prompt for prompt in held_out_prompts(config.prompts, "test")]
    result: dict[str, Any] = {}
    for calls, cell in row.items():
        entry: dict[str, Any] = _figures(cell)
        for label, other in (("equal", calls), ("twice", 2 * calls)):
            if other in guided:
                entry[label] = bounds(paired_difference(cell["verdicts"], guided[other]["verdicts"], prompts))
        result[str(calls)] = entry
    return result


def paired_difference(first: str, second: str, prompts: Sequence[str]) -> Estimate:
    """Return the difference in the share of right images, the mean over tasks, with an interval over distinct prompts.

    Args:
        first: verdicts of one side.
        second: verdicts of the other, of the same prompts and noise.
        prompts: the prompts; tasks alternate, and repeats of one prompt belong together.
    """
    values = torch.tensor([float(a) - float(b) for a, b in zip(first, second, strict=True)])
    return over_prompts(values, prompts, [i % 6 for i in range(len(values))], limits=(-1.0, 1.0))
