"""Shared parts of the studies: the shapes world as an evaluation set, training runs on the art domain, cached cells."""

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
from maskunet.attaching import attach, attachment_of, record
from maskunet.data import CachedLatents
from maskunet.files import make_folder, save_json
from maskunet.maskers import Masker, build_masker
from maskunet.maskers.conditional import ConditionalConfig
from maskunet.metrics.distances import frechet_distance
from maskunet.metrics.geneval_rules import check
from maskunet.relaxation import derive_seed
from maskunet.sampling import generate
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import Prompt, held_out_prompts, held_out_scenes
from maskunet.shapes.vocabulary import TASKS
from maskunet.training import Method, Run, TrainConfig, build_method, train
from maskunet.zoo.dataset import encode_world

Split = Literal["val", "test"]

HELD_OUT = 512  # art images on which a method's own gain is measured
DENSITY_PROMPTS = 24


@dataclass(frozen=True)
class Sampling:
    """How images are generated.

    Args:
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
    """

    num_inference_steps: int
    guidance_scale: float


class World:
    """The evaluation set: held-out prompts, real images and two feature spaces.

    Args:
        pipe: the base pipeline; its autoencoder is the second feature space.
        sampling: how images are generated.
        reference_images: number of real images in a distance.
    """

    def __init__(self, pipe: Any, sampling: Sampling, reference_images: int) -> None:
        self.pipe, self.sampling = pipe, sampling
        self.clip = zoo.load_clip()
        splits: tuple[Split, ...] = ("val", "test")
        self.real = {split: self.features(draw(held_out_scenes(reference_images, split))) for split in splits}

    @torch.inference_mode()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the bundled CLIP's pooled features, and the autoencoder's latents pooled to 2 x 2.

        Args:
            images: (N, 3, H, W) in [0, 1].
        """
        clip = [self.clip.vision_model(x * 2 - 1).pooler_output for x in images.split(250)]
        vae = [self.pipe.vae.encode(x * 2 - 1).latent_dist.mode() for x in images.split(250)]
        return {"clip": torch.cat(clip), "vae": torch.cat([F.adaptive_avg_pool2d(z, 2).flatten(1) for z in vae])}

    def distances(self, images: Tensor, split: Split) -> dict[str, float]:
        """Return the FID to the real images of a split, by feature space.

        Args:
            images: (N, 3, H, W) in [0, 1].
            split: "val" or "test".
        """
        return {space: frechet_distance(x, self.real[split][space]) for space, x in self.features(images).items()}

    @torch.inference_mode()
    def clip_score(self, images: Tensor, captions: Sequence[str]) -> float:
        """Return the mean cosine of images and their captions under the bundled CLIP.

        Args:
            images: (N, 3, H, W) in [0, 1].
            captions: N captions.
        """
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokenizer = self.pipe.tokenizer
        scores = []
        for start in range(0, len(images), 250):
            chunk = list(captions[start : start + 250])
            ids = tokenizer(chunk, max_length=tokenizer.model_max_length, **options).input_ids
            image = self.clip.get_image_features(pixel_values=images[start : start + 250] * 2 - 1).pooler_output
            text = self.clip.get_text_features(input_ids=ids).pooler_output
            scores.append(F.cosine_similarity(image, text))
        return float(torch.cat(scores).mean())

    def measure(self, pipe: Any, seed: int, split: Split, *, prompts: int, images_per_prompt: int) -> dict[str, Any]:
        """Generate images and return accuracy by task, FID in both spaces and CLIP score.

        Args:
            pipe: the pipeline.
            seed: picks the noise; the same seed gives every method the same noise.
            split: "val" or "test".
            prompts: number of prompts.
            images_per_prompt: images per prompt.
        """
        requests = held_out_prompts(prompts, split)
        texts = [p.prompt for p in requests]
        images = torch.cat(
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
                for run in range(images_per_prompt)
            ]
        )
        return {
            "n": len(images),
            "accuracy": accuracy_by_task(images, requests * images_per_prompt),
            "fid": self.distances(images, split),
            "clip_score": self.clip_score(images, texts * images_per_prompt),
        }

    def density(self, pipe: Any) -> float | None:
        """Return the mean density over the steps of one batch; None without masks.

        Args:
            pipe: the pipeline.
        """
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


def match_prompts(images: Tensor, prompts: Sequence[Prompt]) -> list[bool]:
    """Return the judge's verdict for each image: does it show what its prompt requires?

    Args:
        images: (N, 3, H, W) in [0, 1].
        prompts: N prompts.
    """
    return [check(objects, p.metadata()) is None for p, objects in zip(prompts, judge(images), strict=True)]


def accuracy_by_task(images: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Return the share of images that match their prompt by task, and "overall", the mean over tasks.

    Args:
        images: (N, 3, H, W) in [0, 1].
        prompts: N prompts.
    """
    verdicts: dict[str, list[bool]] = {task: [] for task in TASKS}
    for prompt, is_match in zip(prompts, match_prompts(images, prompts), strict=True):
        verdicts[prompt.task].append(is_match)
    accuracy = {task: sum(v) / len(v) for task, v in verdicts.items() if v}
    return accuracy | {"overall": sum(accuracy.values()) / len(accuracy)}


class ArtRuns:
    """Training runs on the art domain, all on the same images.

    Args:
        base: the base pipeline; every run trains a copy.
        folder: folder of the runs.
        train_samples: number of art images to train on.
    """

    def __init__(self, base: Any, folder: Path, train_samples: int) -> None:
        self.base, self.folder, self.train_samples = base, folder, train_samples
        self._data: tuple[CachedLatents, CachedLatents] | None = None

    @property
    def data(self) -> tuple[CachedLatents, CachedLatents]:
        """Training and held-out images, encoded on first use."""
        if self._data is None:
            self._data = encode_world(
                self.base, "shapes-art", train_samples=self.train_samples, held_out_samples=HELD_OUT
            )
        return self._data

    def train(
        self,
        name: str,
        method: str,
        *,
        rate: float,
        seed: int,
        steps: int,
        mask: ConditionalConfig,
        config: dict[str, Any] | None = None,
        build: Callable[..., Masker] = build_masker,
        **options: Any,
    ) -> tuple[Any, Run]:
        """Train a method with masks by threshold; return a copy of the pipeline with the trained parameters, and the run.

        Args:
            name: name of the run's folder.
            method: the trainer's method.
            rate: learning rate.
            seed: training seed.
            steps: optimiser steps.
            mask: settings of the masks.
            config: further settings of the trainer.
            build: builds the masker of the method "mask" from U-Net, `mask` and `seed`.
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
        built: Method | Masker
        if method == "mask":
            built = build(pipe.unet, mask, seed=seed)
        else:
            built = build_method(method, pipe, mask, gumbel=False, seed=seed, **options)
        folder = self.folder / name
        run = train(pipe, built, data, training, folder, validation=held_out, progress=False)
        if "lora" in method:
            pipe.load_lora_weights(folder / "lora")
        if "mask" in method:
            attach(pipe, run.masker)
        return pipe, run


def load_base() -> Any:
    """Return the bundled pipeline with DPM-Solver++, which needs fewer steps than DDIM for the same accuracy."""
    pipe = zoo.load("shapes")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


def cached_cell(path: Path, run: Callable[[], dict[str, Any]], settings: str | None = None) -> dict[str, Any]:
    """Return a finished cell of a table, or run and save it.

    Args:
        path: its file.
        run: measures the cell.
        settings: what the cell depends on; a saved cell of other settings is measured again. None if the path covers it.
    """
    if path.is_file():
        cell: dict[str, Any] = json.loads(path.read_text())
        if cell.get("settings") == settings:
            return cell
    start = time.monotonic()
    cell = run() | ({} if settings is None else {"settings": settings})
    cell["minutes"] = round((time.monotonic() - start) / 60, 2)
    make_folder(path.parent)
    save_json(cell, path)
    return cell
