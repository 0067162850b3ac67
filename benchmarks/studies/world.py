"""What the tables share: the world that pictures are judged in, runs on the art domain, and cells that are kept."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from maskunet import zoo
from maskunet.attaching.attachment import attach, attachment_of, record
from maskunet.data import CachedLatents
from maskunet.maskers import TrainableConfig
from maskunet.metrics.distances import frechet_distance
from maskunet.metrics.geneval_rules import check
from maskunet.relaxation import derive_seed
from maskunet.sampling import generate
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import Prompt, held_out_prompts, held_out_scenes
from maskunet.shapes.vocabulary import TASKS
from maskunet.training import Run, TrainConfig, build_method, train
from maskunet.zoo.dataset import HELD_OUT_SEED, TRAIN_SEED, encode_scenes, scenes_of

Split = Literal["val", "test"]

HELD_OUT = 512  # art pictures on which a method's own gain is measured
DENSITY_PROMPTS = 24


@dataclass(frozen=True)
class Sampling:
    """How pictures are generated.

    Args:
        num_inference_steps: denoising steps of DPM-Solver++, which needs fewer than DDIM for the same accuracy.
        guidance_scale: strength of classifier-free guidance.
    """

    num_inference_steps: int
    guidance_scale: float


class World:
    """The evaluation world: prompts, real pictures and two feature spaces.

    Args:
        pipe: the base pipeline; its autoencoder gives the second feature space.
        sampling: how pictures are generated.
        reference_pictures: real pictures that distances are measured to.
    """

    def __init__(self, pipe: Any, sampling: Sampling, reference_pictures: int) -> None:
        self.pipe, self.sampling = pipe, sampling
        self.clip = zoo.load_clip()
        splits: tuple[Split, ...] = ("val", "test")
        self.real = {split: self.features(draw(held_out_scenes(reference_pictures, split))) for split in splits}

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the bundled CLIP's pooled features, and the autoencoder's latents pooled to 2 x 2."""
        clip = [self.clip.vision_model(p * 2 - 1).pooler_output for p in pictures.split(250)]
        vae = [self.pipe.vae.encode(p * 2 - 1).latent_dist.mode() for p in pictures.split(250)]
        return {"clip": torch.cat(clip), "vae": torch.cat([F.adaptive_avg_pool2d(z, 2).flatten(1) for z in vae])}

    @torch.inference_mode()
    def clip_score(self, pictures: Tensor, captions: Sequence[str]) -> float:
        """Return the mean cosine of pictures and their captions under the bundled CLIP."""
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

    def measure(self, pipe: Any, seed: int, split: Split, *, prompts: int, pictures: int) -> dict[str, Any]:
        """Generate `pictures` for each of `prompts` and return accuracy by task, FID in both spaces and CLIP score.

        Args:
            pipe: the pipeline to measure.
            seed: picks the noise; the same seed means the same noise for every method.
            split: "val" or "test".
            prompts: how many prompts.
            pictures: pictures a prompt.
        """
        chosen = held_out_prompts(prompts, split)
        texts = [p.prompt for p in chosen]
        made = torch.cat(
            [
                generate(
                    pipe,
                    texts,
                    seeds=[derive_seed("table1", split, seed, run, i) % 2**31 for i in range(prompts)],
                    num_inference_steps=self.sampling.num_inference_steps,
                    guidance_scale=self.sampling.guidance_scale,
                    batch_size=100,
                    progress=False,
                ).tensor
                for run in range(pictures)
            ]
        )
        features = self.features(made)
        return {
            "n": len(made),
            "accuracy": accuracy_by_task(made, chosen * pictures),
            "fid": {space: frechet_distance(x, self.real[split][space]) for space, x in features.items()},
            "clip_score": self.clip_score(made, texts * pictures),
        }

    def density(self, pipe: Any) -> float | None:
        """Return the mean density over the steps of one batch of pictures; None without masks."""
        if attachment_of(pipe) is None:
            return None
        prompts = [p.prompt for p in held_out_prompts(DENSITY_PROMPTS, "val")]
        with record(pipe, keep="density") as trace:
            generate(
                pipe,
                prompts,
                num_inference_steps=self.sampling.num_inference_steps,
                guidance_scale=self.sampling.guidance_scale,
                batch_size=DENSITY_PROMPTS,
                progress=False,
            )
        calls = trace.overall_density()
        return sum(calls) / len(calls)


def right(pictures: Tensor, prompts: Sequence[Prompt]) -> list[bool]:
    """Return of each picture whether the judge finds in it what its prompt asks for.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        prompts: a prompt for each.
    """
    return [check(found, p.metadata()) is None for p, found in zip(prompts, judge(pictures), strict=True)]


def accuracy_by_task(pictures: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Return the share of right pictures by task, and "overall", the mean over tasks.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        prompts: a prompt for each.
    """
    by_task: dict[str, list[bool]] = {task: [] for task in TASKS}
    for prompt, found in zip(prompts, right(pictures, prompts), strict=True):
        by_task[prompt.task].append(found)
    accuracy = {task: sum(r) / len(r) for task, r in by_task.items() if r}
    return accuracy | {"overall": sum(accuracy.values()) / len(accuracy)}


class ArtRuns:
    """Runs on the art domain, all on the same pictures.

    Args:
        base: the base pipeline; every run trains a copy.
        folder: folder of the runs.
        train_samples: art pictures to train on.
    """

    def __init__(self, base: Any, folder: Path, train_samples: int) -> None:
        self.base, self.folder, self.train_samples = base, folder, train_samples
        self._data: tuple[CachedLatents, CachedLatents] | None = None

    @property
    def data(self) -> tuple[CachedLatents, CachedLatents]:
        """Training and held-out pictures, encoded on first use."""
        if self._data is None:
            scenes, style = scenes_of("shapes-art", self.train_samples, seed=TRAIN_SEED)
            held_out, _ = scenes_of("shapes-art", HELD_OUT, seed=HELD_OUT_SEED)
            self._data = encode_scenes(self.base, scenes, style), encode_scenes(self.base, held_out, style)
        return self._data

    def train(
        self,
        name: str,
        method: str,
        *,
        rate: float,
        seed: int,
        steps: int,
        mask: TrainableConfig,
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Any, Run]:
        """Train a method by threshold masks and return a copy of the pipeline that carries what was trained.

        Args:
            name: name of the run's folder.
            method: the trainer's method.
            rate: learning rate.
            seed: training seed.
            steps: optimiser steps.
            mask: settings of the masks.
            config: further settings of the trainer.
            options: further options of the method.
        """
        pipe, (data, held_out) = copy.deepcopy(self.base), self.data
        settings = {"validation_steps": steps, "checkpoints_total_limit": 1} | (config or {})
        training = TrainConfig(
            max_train_steps=steps,
            learning_rate=rate,
            snr_gamma=5.0,
            gumbel=False,
            validation_samples=len(held_out),
            seed=seed,
            **settings,
        )
        chosen = build_method(method, pipe, mask, gumbel=False, seed=seed, **options)
        folder = self.folder / name
        run = train(pipe, chosen, data, training, folder, validation=held_out, progress=False)
        if "lora" in method:
            pipe.load_lora_weights(folder / "lora")
        if "mask" in method:
            attach(pipe, run.masker)
        return pipe, run


def load_base() -> Any:
    """Return the bundled pipeline with the sampler that pictures are generated with."""
    pipe = zoo.load("shapes")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


def cell(path: Path, make: Callable[[], dict[str, Any]], settings: str | None = None) -> dict[str, Any]:
    """Return a finished cell, or make it and keep it.

    Args:
        path: its file.
        make: makes it.
        settings: what it was made with; a cell of other settings is made anew. None if the path says it all.
    """
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("settings") == settings:
            return found
    start = time.monotonic()
    found = make() | ({} if settings is None else {"settings": settings})
    found["minutes"] = round((time.monotonic() - start) / 60, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)
    return found
