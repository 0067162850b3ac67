"""The search, amortised: masks and LoRA trained by the reward's gradient, with the same objective and budget.

Both climb the bundled reward of their own guided samples (ReFL) with the diffusion loss beside, on training captions. The
rate of each is chosen by the judge on validation prompts; test prompts are held out from training and choice. Referees are
the judge and a second reward that nothing is optimised for. Finished cells are kept, so the same call again goes on.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from benchmarks.studies.rivals import plain
from benchmarks.studies.search import Method, mean_reward, reward_digest
from benchmarks.studies.world import Sampling, Split, World, accuracy_by_task, cell, load_base
from maskunet.attaching.attachment import attach, attachment_of, reattach
from maskunet.checkpoint import load
from maskunet.data import CachedLatents
from maskunet.maskers import LowRankMaskerConfig
from maskunet.metrics.distances import frechet_distance
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

    Args:
        seeds: training seeds.
        steps: optimiser steps.
        rates: learning rates tried for each method.
        initial_logit: every mask logit at the start.
        train_samples: pictures whose captions are trained on.
        train_batch_size, reward_batch_size: samples a step of the diffusion loss and of the reward.
        reward_weight: weight of the reward beside the diffusion loss.
        refl_start: ReFL takes the reward at a random step past this share of the steps.
        prompts: held-out prompts of a cell, a picture each.
        reference_pictures: real pictures that distances are measured to.
        num_inference_steps, guidance_scale: settings of generation, in training too.
        reward: name of the bundled reward that is climbed.
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
    reference_pictures: int = 2400
    num_inference_steps: int = 8
    guidance_scale: float = 4.0
    reward: str = "shapes"

    @classmethod
    def of(cls, reward: str, **changes: Any) -> Self:
        """Return the settings for a reward, with changes: of those that differ in scale each has its own."""
        return cls(**({"reward": reward} | _SETTINGS.get(reward, {}) | changes))


#: The first reward's gentle settings changed next to nothing.
_SETTINGS: dict[str, dict[str, Any]] = {
    "shapes-matching": {
        "steps": 120,
        "rates": {"mask": (1e-3, 3e-3), "lora": (3e-4, 1e-3)},
        "reward_weight": 0.3,
    }
}


def reproduce_amortised(
    work: Path, config: AmortisedConfig | None = None, *, say: Callable[[str], None] = logger.info
) -> dict[str, Any]:
    """Run every cell that is missing and return the whole record.

    Args:
        work: folder of the runs and the finished cells; the same call again goes on there.
        config: settings.
        say: told of each cell as it is finished.

    Raises:
        RewardError: the reward is no bundled one.
    """
    config = config or AmortisedConfig()
    mark = f"{asdict(replace(config, seeds=0, rates={}))} {reward_digest(config.reward)}"
    base = load_base()
    climbed, referee = load_reward(config.reward), load_reward("shapes-referee")
    world = World(base, Sampling(config.num_inference_steps, config.guidance_scale), config.reference_pictures)
    scenes, style = scenes_of("shapes", config.train_samples, seed=TRAIN_SEED)
    data = encode_scenes(base, scenes, style)

    def measured(pipe: Any, split: Split) -> dict[str, Any]:
        prompts = held_out_prompts(config.prompts, split)
        texts = [p.prompt for p in prompts]
        made = generate(
            pipe,
            texts,
            seeds=[derive_seed("amortised", split, i) % 2**31 for i in range(len(texts))],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            batch_size=100,
            progress=False,
        ).tensor
        return {
            "n": len(made),
            "reward": mean_reward(climbed, made, texts),
            "referee": mean_reward(referee, made, texts),
            "accuracy": accuracy_by_task(made, prompts),
            "fid": {s: frechet_distance(x, world.real[split][s]) for s, x in world.features(made).items()},
            "density": world.density(pipe),
        }

    def trained(method: str, rate: float, seed: int, split: Split) -> dict[str, Any]:
        folder = work / "runs" / f"{method}-{rate:g}-{seed}"
        return measured(train_one(base, data, config, method, rate, seed, folder, climbed), split)

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = cell(work / "cells" / f"{name}.json", make, mark)
        say(
            f"{name}: reward {found['reward']:.4f}, referee {found['referee']:.4f}, "
            f"overall {found['accuracy']['overall']:.3f}, FID {found['fid']['clip']:.2f}"
        )
        return found

    validation: dict[str, Any] = {"base": kept("val-base", partial(measured, base, "val"))}
    cells: dict[str, list[dict[str, Any]]] = {"base": [kept("test-base", partial(measured, base, "test"))]}
    chosen: dict[str, float] = {}
    for method, rates in config.rates.items():
        tried = {r: kept(f"val-{method}-{r:g}", partial(trained, method, r, 0, "val")) for r in rates}
        validation[method] = {f"{r:g}": c for r, c in tried.items()}
        # Of rates that the judge cannot tell apart the one that raised the reward most.
        chosen[method] = max(tried, key=lambda r: (tried[r]["accuracy"]["overall"], tried[r]["reward"]))
        # Training seeds of the test are others than the one that the rate was chosen with.
        cells[method] = [
            kept(f"test-{method}-{seed}", partial(trained, method, chosen[method], seed, "test"))
            for seed in range(1, config.seeds + 1)
        ]
    return {
        "config": asdict(config),
        "chosen": chosen,
        "validation": validation,
        "cells": cells,
        "version": __version__,
    }


def train_one(
    base: Any,
    data: CachedLatents,
    config: AmortisedConfig,
    method: str,
    rate: float,
    seed: int,
    folder: Path,
    climbed: Reward,
) -> Any:
    """Train a method by the reward, unless done, and return a copy of the pipeline that carries it.

    Args:
        base: the bundled pipeline.
        data: what the diffusion loss sees; its captions are what the reward is climbed on.
        config: settings.
        method: "mask" or "lora".
        rate: learning rate.
        seed: of the training.
        folder: of the run; the same call again goes on there.
        climbed: the reward.
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
    chosen = build_method(method, pipe, mask, gumbel=False, seed=seed)
    run = train(pipe, chosen, data, training, folder, reward=climbed, progress=False)
    if method == "lora":
        pipe.load_lora_weights(folder / "lora")
    else:
        attach(pipe, run.masker)
    return pipe


def amortised_masker(
    work: Path, config: AmortisedConfig, *, rate: float, seed: int = 1, say: Callable[[str], None] = logger.info
) -> Method:
    """Return sampling under a masker that the reward trained, as a method beside a search; it is trained unless done.

    Args:
        work: folder of its run.
        config: settings; its reward is what is climbed.
        rate: learning rate.
        seed: of the training.
        say: told before it is trained.
    """
    settings = f"{asdict(replace(config, seeds=0, rates={}))} {rate} {seed} {reward_digest(config.reward)}"
    folder = work / "runs" / f"amortised-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    if not (folder / "masker").is_dir():
        say(f"amortised masker: {config.steps} steps at {rate:g}, in {folder}")
        base = load_base()
        scenes, style = scenes_of("shapes", config.train_samples, seed=TRAIN_SEED)
        train_one(
            base, encode_scenes(base, scenes, style), config, "mask", rate, seed, folder, load_reward(config.reward)
        )
    return partial(_under_masker, folder=str(folder / "masker"))


def _under_masker(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, folder: str, **options: Any
) -> Tensor:
    before = attachment_of(pipe)
    attach(pipe, load(folder, pipe))
    try:
        return plain(pipe, prompts, seeds, **options)
    finally:
        reattach(pipe, before)


def shortened(config: AmortisedConfig, share: float) -> AmortisedConfig:
    """Return settings with a share of steps, samples and prompts, to try the command out."""

    def cut(count: int, least: int = 12) -> int:
        return max(least, round(count * share))

    return replace(
        config,
        seeds=max(2, round(config.seeds * share)),
        steps=cut(config.steps, 2),
        rates={method: rates[:1] for method, rates in config.rates.items()},
        train_samples=cut(config.train_samples, 64),
        train_batch_size=cut(config.train_batch_size, 4),
        reward_batch_size=cut(config.reward_batch_size, 2),
        prompts=cut(config.prompts),
        reference_pictures=cut(config.reference_pictures, 64),
    )
