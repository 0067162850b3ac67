"""The amortised search: masks and LoRA trained by the reward's gradient, with the same objective and budget.

Both optimise a bundled reward on their own guided samples (ReFL) together with the diffusion loss, on training captions.
The judge selects each method's learning rate on validation prompts; test prompts play no part in training or selection.
Nothing is optimised for the judge or for the referee, a second reward. Finished cells are saved: the same call resumes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from benchmarks.studies import rivals
from benchmarks.studies.generation_methods import GenerationMethod
from benchmarks.studies.search import reward_digest, rewards_of
from benchmarks.studies.world import Sampling, Split, World, accuracy_by_task, cached_cell, load_base
from maskunet import load
from maskunet.attaching import attach, attachment_of, reattach
from maskunet.data import CachedLatents
from maskunet.maskers import LowRankMaskerConfig
from maskunet.relaxation import derive_seed
from maskunet.rewards import Reward
from maskunet.rewards import load as load_reward
from maskunet.sampling import generate
from maskunet.shapes.scenes import held_out_prompts
from maskunet.training import TrainConfig, build_method, train
from maskunet.version import __version__
from maskunet.zoo.dataset import TRAIN_SEED, encode_scenes, scenes_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AmortisedConfig:
    """Settings of the comparison.

    Main:
        seeds: number of training seeds.
        steps: optimiser steps.
        rates: learning rates by method.
        reward: name of the bundled reward to optimise.
        reward_weight: weight of the reward relative to the diffusion loss.
        prompts: number of held-out prompts per cell, one image each.

    Fine-tuning:
        initial_logit: every mask logit at the start.
        train_samples: number of images with training captions.
        train_batch_size: samples per step in the diffusion loss.
        reward_batch_size: samples per step in the reward.
        refl_start: ReFL takes the reward at a random step after this share of the steps.
        reference_images: number of real images in a distance.
        num_inference_steps: denoising steps, also in training.
        guidance_scale: strength of classifier-free guidance, also in training.
    """

    seeds: int = 3
    steps: int = 80
    rates: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {"mask": (3e-4, 1e-3), "lora": (1e-4, 3e-4, 1e-3)}
    )
    initial_logit: float = 0.5
    train_samples: int = 4000
    train_batch_size: int = 32
    reward_batch_size: int = 24
    reward_weight: float = 0.1
    refl_start: float = 0.25
    prompts: int = 600
    reference_images: int = 2400
    num_inference_steps: int = 8
    guidance_scale: float = 4.0
    reward: str = "shapes"

    @classmethod
    def preset(cls, reward: str, **changes: Any) -> Self:
        """Return the settings for a reward; rewards differ in scale.

        Args:
            reward: name of a bundled reward.
            changes: settings to replace.
        """
        return cls(**({"reward": reward} | _PRESETS.get(reward, {}) | changes))


#: The settings for `shapes` change next to nothing here.
_PRESETS: dict[str, dict[str, Any]] = {
    "shapes-matching": {
        "steps": 120,
        "rates": {"mask": (1e-3, 3e-3), "lora": (3e-4, 1e-3)},
        "reward_weight": 0.3,
    }
}


def run_amortised(
    work: Path, config: AmortisedConfig | None = None, *, log: Callable[[str], None] = logger.info
) -> dict[str, Any]:
    """Run every missing cell and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call resumes there.
        config: settings.
        log: receives one line per finished cell.

    Raises:
        RewardError: the reward is not a bundled one.
    """
    config = config or AmortisedConfig()
    settings = f"{asdict(replace(config, seeds=0, rates={}))} {reward_digest(config.reward)}"
    base = load_base()
    reward, referee = load_reward(config.reward), load_reward("shapes-referee")
    world = World(base, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_images)
    data = _training_data(base, config)

    def measure(pipe: Any, split: Split) -> dict[str, Any]:
        prompts = held_out_prompts(config.prompts, split)
        texts = [p.prompt for p in prompts]
        images = generate(
            pipe,
            texts,
            seeds=[derive_seed("amortised", split, i) % 2**31 for i in range(len(texts))],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            batch_size=100,
            progress=False,
        ).tensor
        return {
            "n": len(images),
            "reward": statistics.fmean(rewards_of(reward, images, texts)),
            "referee": statistics.fmean(rewards_of(referee, images, texts)),
            "accuracy": accuracy_by_task(images, prompts),
            "fid": world.distances(images, split),
            "density": world.density(pipe),
        }

    def train_and_measure(method: str, rate: float, seed: int, split: Split) -> dict[str, Any]:
        folder = work / "runs" / f"{method}-{rate:g}-{seed}"
        return measure(train_one(base, data, config, method, rate, seed, folder, reward), split)

    def cell(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        values = dict(cached_cell(work / "cells" / f"{name}.json", run, settings))
        del values["settings"]  # the record has them once
        log(
            f"{name}: reward {values['reward']:.4f}, referee {values['referee']:.4f}, "
            f"overall {values['accuracy']['overall']:.3f}, FID {values['fid']['clip']:.2f}"
        )
        return values

    validation: dict[str, Any] = {"base": cell("val-base", partial(measure, base, "val"))}
    cells: dict[str, list[dict[str, Any]]] = {"base": [cell("test-base", partial(measure, base, "test"))]}
    selected: dict[str, float] = {}
    for method, rates in config.rates.items():
        by_rate = {
            rate: cell(f"val-{method}-{rate:g}", partial(train_and_measure, method, rate, 0, "val")) for rate in rates
        }
        validation[method] = {f"{rate:g}": values for rate, values in by_rate.items()}
        # The reward breaks ties of the judge.
        selected[method] = max(by_rate, key=lambda r: (by_rate[r]["accuracy"]["overall"], by_rate[r]["reward"]))
        # Seed 0 selected the rate, so the test cells have other training seeds.
        cells[method] = [
            cell(f"test-{method}-{seed}", partial(train_and_measure, method, selected[method], seed, "test"))
            for seed in range(1, config.seeds + 1)
        ]
    return {
        "config": asdict(config),
        "reward_weights": reward_digest(config.reward),
        "selected": selected,
        "validation": validation,
        "cells": cells,
        "version": __version__,
    }


def _training_data(base: Any, config: AmortisedConfig) -> CachedLatents:
    scenes, style = scenes_of("shapes", config.train_samples, seed=TRAIN_SEED)
    return encode_scenes(base, scenes, style)


def train_one(
    base: Any,
    data: CachedLatents,
    config: AmortisedConfig,
    method: str,
    rate: float,
    seed: int,
    folder: Path,
    reward: Reward,
) -> Any:
    """Train a method by the reward, unless its run is finished; return a copy of the pipeline with its parameters.

    Args:
        base: the bundled pipeline.
        data: images of the diffusion loss; the reward takes their captions.
        config: settings.
        method: "mask" or "lora".
        rate: learning rate.
        seed: training seed.
        folder: folder of the run; the same call resumes there.
        reward: the reward to optimise.
    """
    pipe = copy.deepcopy(base)
    training = TrainConfig(
        max_train_steps=config.steps,
        train_batch_size=config.train_batch_size,
        learning_rate=rate,
        lr_warmup_steps=config.steps // 10,
        snr_gamma=5.0,
        gumbel=False,
        objective="reward",
        reward_weight=config.reward_weight,
        reward_batch_size=config.reward_batch_size,
        reward_num_inference_steps=config.num_inference_steps,
        reward_guidance_scale=config.guidance_scale,
        refl_start=config.refl_start,
        validation_rewards=0,
        validation_samples=0,
        checkpointing_steps=20,
        checkpoints_total_limit=1,
        seed=seed,
    )
    mask = LowRankMaskerConfig(initial_logit=config.initial_logit)
    built = build_method(method, pipe, mask, gumbel=False, seed=seed)
    run = train(pipe, built, data, training, folder, reward=reward, progress=False)
    if method == "lora":
        pipe.load_lora_weights(folder / "lora")
    else:
        attach(pipe, run.masker)
    return pipe


def amortised_masker(
    work: Path, config: AmortisedConfig, *, rate: float, seed: int = 1, log: Callable[[str], None] = logger.info
) -> GenerationMethod:
    """Return sampling under a masker trained by the reward, as a rival of a search; trains it on the first call.

    Args:
        work: folder of its run.
        config: settings, with the reward to optimise.
        rate: learning rate.
        seed: training seed.
        log: receives one line before a training.
    """
    settings = f"{asdict(replace(config, seeds=0, rates={}))} {rate} {seed} {reward_digest(config.reward)}"
    folder = work / "runs" / f"amortised-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    if not (folder / "masker").is_dir():
        log(f"amortised masker: {config.steps} steps at {rate:g}, in {folder}")
        base = load_base()
        data = _training_data(base, config)
        train_one(base, data, config, "mask", rate, seed, folder, load_reward(config.reward))
    return partial(_under_masker, folder=str(folder / "masker"))


def _under_masker(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, folder: str, **options: Any
) -> Tensor:
    previous = attachment_of(pipe)
    attach(pipe, load(folder, pipe))
    try:
        return rivals.plain(pipe, prompts, seeds, **options)
    finally:
        reattach(pipe, previous)
