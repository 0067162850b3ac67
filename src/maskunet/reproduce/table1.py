"""The paper's Table 1 in kind: fine-tune on the art domain, evaluate zero-shot on the first world.

The paper trains on laion-art and evaluates on COCO; here `shapes-art` plays the first and `shapes` the second. Every
method sees the same data, noise and steps; its learning rate is chosen on the validation split. A cell is one method
with one training seed; the same seed means the same noise for every method, so differences are paired. Finished cells
are kept, so the same call again goes on.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import __version__, zoo
from ..attachment import attach, attachment_of, record
from ..data import CachedLatents, encode_scenes
from ..data.cached import HELD_OUT_SEED, POOL, TRAIN_SEED, scenes_of
from ..evaluation import generate
from ..maskers import MaskConfig, RandomMasks
from ..metrics.distances import frechet_distance
from ..metrics.geneval import check
from ..relaxation import derive_seed
from ..shapes.drawing import draw
from ..shapes.judge import judge
from ..shapes.scenes import held_out_prompts, held_out_scenes
from ..shapes.vocabulary import TASKS
from ..training import TrainConfig, build_method, train

logger = logging.getLogger(__name__)


_HELD_OUT = 512  # art pictures on which a method's own gain is measured


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
    steps: int = 200
    train_samples: int = POOL
    prompts: int = 600
    pictures: int = 5
    validation_prompts: int = 300
    reference_pictures: int = 2400
    initial_logit: float = 0.3
    num_inference_steps: int = 12
    guidance_scale: float = 4.0


class _World:
    """The evaluation world: prompts, real pictures and the two feature spaces."""

    def __init__(self, pipe: Any, config: Table1Config) -> None:
        self.pipe, self.config = pipe, config
        self.clip = zoo.load_reward_model()
        self.real = {
            split: self.features(draw(held_out_scenes(config.reference_pictures, split))) for split in ("val", "test")
        }

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> dict[str, Tensor]:
        """The bundled CLIP's pooled features, and the autoencoder's latents pooled to 2 x 2."""
        clip = [self.clip.vision_model(p * 2 - 1).pooler_output for p in pictures.split(250)]
        vae = [self.pipe.vae.encode(p * 2 - 1).latent_dist.mode() for p in pictures.split(250)]
        return {"clip": torch.cat(clip), "vae": torch.cat([F.adaptive_avg_pool2d(z, 2).flatten(1) for z in vae])}

    @torch.inference_mode()
    def clip_score(self, pictures: Tensor, captions: Sequence[str]) -> float:
        """Mean cosine of pictures and their captions under the bundled CLIP."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokenizer = self.pipe.tokenizer
        scores = []
        for start in range(0, len(pictures), 250):
            chunk = list(captions[start : start + 250])
            ids = tokenizer(chunk, max_length=tokenizer.model_max_length, **options).input_ids
            image = self.clip.get_image_features(pixel_values=pictures[start : start + 250] * 2 - 1).pooler_output
            text = self.clip.get_text_features(input_ids=ids).pooler_output
            scores.append(F.cosine_similarity(image, text))
        return float(torch.cat(scores).mean())

    def measure(self, pipe: Any, seed: int, split: str) -> dict[str, Any]:
        """Generate and measure one cell."""
        config = self.config
        count, runs = (config.prompts, config.pictures) if split == "test" else (config.validation_prompts, 1)
        prompts = held_out_prompts(count, split)  # type: ignore[arg-type]
        texts = [p.prompt for p in prompts]
        pictures = torch.cat(
            [
                generate(
                    pipe,
                    texts,
                    seeds=[derive_seed("table1", split, seed, run, i) % 2**31 for i in range(count)],
                    num_inference_steps=config.num_inference_steps,
                    guidance_scale=config.guidance_scale,
                    batch_size=100,
                    progress=False,
                )
                for run in range(runs)
            ]
        )
        right: dict[str, list[bool]] = {task: [] for task in TASKS}
        for prompt, found in zip(prompts * runs, judge(pictures), strict=True):
            right[prompt.task].append(check(found, prompt.metadata()) is None)
        accuracy = {task: sum(r) / len(r) for task, r in right.items() if r}
        features = self.features(pictures)
        return {
            "n": len(pictures),
            "accuracy": accuracy | {"overall": sum(accuracy.values()) / len(accuracy)},
            "fid": {space: frechet_distance(x, self.real[split][space]) for space, x in features.items()},
            "clip_score": self.clip_score(pictures, texts * runs),
        }


def _density(pipe: Any, config: Table1Config) -> float | None:
    """Mean density over the steps of one batch of pictures."""
    if attachment_of(pipe) is None:
        return None
    prompts = [p.prompt for p in held_out_prompts(24, "val")]
    with record(pipe, keep="density") as trace:
        steps, scale = config.num_inference_steps, config.guidance_scale
        generate(pipe, prompts, num_inference_steps=steps, guidance_scale=scale, batch_size=24, progress=False)
    calls = trace.overall_density()
    return sum(calls) / len(calls)


def _cell(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a finished cell, or make it and keep it."""
    if path.is_file():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    start = time.monotonic()
    found = make()
    found["minutes"] = round((time.monotonic() - start) / 60, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)
    return found


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
    base = zoo.load("shapes")
    world = _World(base, config)
    scenes, style = scenes_of("shapes-art", config.train_samples, seed=TRAIN_SEED)
    data: list[CachedLatents] = []

    def trained(name: str, rate: float, seed: int, split: str) -> dict[str, Any]:
        if not data:
            data.append(encode_scenes(base, scenes, style))
            data.append(encode_scenes(base, scenes_of("shapes-art", _HELD_OUT, seed=HELD_OUT_SEED)[0], style))
        side, pipe = SIDES[name], copy.deepcopy(base)
        training = TrainConfig(
            max_train_steps=config.steps,
            learning_rate=rate,
            snr_gamma=5.0,
            gumbel=False,
            validation_samples=len(data[1]),
            validation_steps=config.steps,
            checkpoints_total_limit=1,
            seed=seed,
        )
        assert side.method is not None
        mask = MaskConfig(initial_logit=config.initial_logit)
        method = build_method(side.method, pipe, mask, gumbel=False, seed=seed, **dict(side.options))
        folder = work / "runs" / f"{name.replace(' ', '')}-{rate:g}-{seed}"
        run = train(pipe, method, data[0], training, folder, validation=data[1], progress=False)
        if "lora" in side.method:
            pipe.load_lora_weights(folder / "lora")
        if "mask" in side.method:
            attach(pipe, run.masker)
        own = {"density": _density(pipe, config), "learning_rate": rate, "art_gain": run.stats[-1]["gain"]}
        return world.measure(pipe, seed, split) | own

    def untrained(name: str, seed: int) -> dict[str, Any]:
        pipe = copy.deepcopy(base)
        if name == "random masks":
            attach(pipe, RandomMasks.for_unet(pipe.unet, seed=seed, **dict(SIDES[name].options)))
        return world.measure(pipe, seed, "test") | {"density": _density(pipe, config)}

    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    rates: dict[str, dict[str, Any]] = {}
    for name, side in SIDES.items():
        if side.method is None:
            continue
        rates[name] = {}
        for rate in side.rates:
            path = work / "rates" / f"{name.replace(' ', '')}-{rate:g}.json"
            found = rates[name][f"{rate:g}"] = _cell(path, partial(trained, name, rate, 0, "val"))
            say(f"{name} at {rate:g}: validation FID {found['fid']['clip']:.3f}, art gain {found['art_gain']:.4f}")
    for seed in range(config.seeds):
        for name, side in SIDES.items():
            path = work / "cells" / f"{name.replace(' ', '')}-{seed}.json"
            if side.method is None:
                cell = _cell(path, partial(untrained, name, seed))
            else:
                rate = float(min(rates[name], key=lambda r: rates[name][r]["fid"]["clip"]))
                cell = _cell(path, partial(trained, name, rate, seed, "test"))
            cells[name].append(cell)
            say(f"{name}, seed {seed}: FID {cell['fid']['clip']:.3f}, overall {cell['accuracy']['overall']:.3f}")
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
