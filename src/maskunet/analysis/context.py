"""The inputs of an analysis: a pipeline with its masks, the prompts, and the noise of each image."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attaching import attachment_of
from ..errors import SettingError
from ..evaluation.bundled import is_bundled, model_name
from ..machine import machine
from ..maskers import Masker
from ..metrics.geneval_rules import check
from ..sampling import pipeline_side
from ..sampling.guidance_scale import default_guidance_scale
from ..sampling.stepwise import StepwiseSampler
from ..shapes.judge import judge
from ..shapes.scenes import Prompt, held_out_prompts
from ..version import __version__
from .base import AnalysisSettings, Progress


@dataclass(frozen=True)
class AnalysisContext:
    """A pipeline and the images that an analysis generates with it.

    Args:
        pipe: the pipeline, with or without masks.
        settings: settings of the analysis.
        prompts: n prompts.
        requirements: what the judge checks for each prompt; None if the judge does not know the prompts.
        progress: reports progress.
    """

    pipe: Any
    settings: AnalysisSettings
    prompts: list[str]
    requirements: list[Prompt] | None
    progress: Progress

    @property
    def seeds(self) -> list[int]:
        """The seed of each image's noise."""
        return [self.settings.seed + i for i in range(len(self.prompts))]

    @property
    def masker(self) -> Masker:
        """The attached masker."""
        attachment = attachment_of(self.pipe)
        assert attachment is not None
        return attachment.masker

    @property
    def unet_calls(self) -> int:
        """U-Net calls per image; some schedulers make more than one per step."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(self.settings.num_inference_steps)
        return len(scheduler.timesteps)

    @property
    def tasks(self) -> list[list[int]]:
        """The numbers of the images of each task; all in one group without requirements."""
        if self.requirements is None:
            return [list(range(len(self.prompts)))]
        names = dict.fromkeys(p.task for p in self.requirements)
        return [[i for i, p in enumerate(self.requirements) if p.task == name] for name in names]

    def batches(self) -> list[list[int]]:
        """Return the numbers of the images of each batch."""
        sets = _mask_sets(self.pipe)
        size = -(-self.settings.batch_size // sets) * sets
        return [list(range(i, min(i + size, len(self.prompts)))) for i in range(0, len(self.prompts), size)]

    def samplers(
        self, task: str, span: tuple[float, float] = (0.0, 1.0)
    ) -> Iterator[tuple[list[int], StepwiseSampler]]:
        """Yield the numbers of each batch's images and its sampling loop, and report progress.

        Args:
            task: name of the current task.
            span: progress at the start and at the end of the task, in [0, 1].
        """
        s = self.settings
        for numbers in self._reported_batches(task, span):
            yield (
                numbers,
                StepwiseSampler(
                    self.pipe,
                    [self.prompts[i] for i in numbers],
                    seeds=[self.seeds[i] for i in numbers],
                    num_inference_steps=s.num_inference_steps,
                    guidance_scale=s.guidance_scale,
                    guidance_rescale=s.guidance_rescale,
                ),
            )

    def generate(self, task: str, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Return the images (n, 3, H, W) in [0, 1], on the CPU, and report progress.

        Args:
            task: name of the current task.
            span: progress at the start and at the end of the task, in [0, 1].
        """
        s, images = self.settings, []
        guidance: dict[str, Any] = {"guidance_scale": s.guidance_scale, "guidance_rescale": s.guidance_rescale}
        side = pipeline_side(self.pipe, num_inference_steps=s.num_inference_steps, **guidance)
        for numbers in self._reported_batches(task, span):
            images.append(side([self.prompts[i] for i in numbers], [self.seeds[i] for i in numbers]))
        return torch.cat(images)

    def _reported_batches(self, task: str, span: tuple[float, float]) -> Iterator[list[int]]:
        batches = self.batches()
        for k, numbers in enumerate(batches):
            self.progress(span[0] + (span[1] - span[0]) * k / len(batches), task)
            yield numbers

    def judge(self, images: Tensor, numbers: Sequence[int] | None = None) -> list[bool] | None:
        """Return whether each image matches its prompt; None if the judge does not know the prompts.

        Args:
            images: (N, 3, H, W) in [0, 1].
            numbers: numbers of the images' prompts; all if None.
        """
        if self.requirements is None:
            return None
        prompts = self.requirements if numbers is None else [self.requirements[i] for i in numbers]
        return [check(detections, p.metadata()) is None for p, detections in zip(prompts, judge(images), strict=True)]

    def record(self, *names: str, **values: Any) -> dict[str, Any]:
        """Return the settings of an analysis as JSON values.

        Args:
            names: names of settings that only this analysis uses.
            values: further values.
        """
        s, attachment = self.settings, attachment_of(self.pipe)
        extra = {k: v.name if isinstance(v, Path) else v for k, v in asdict(s).items() if k in names}
        return {
            "n": len(self.prompts),
            "seed": s.seed,
            "steps": s.num_inference_steps,
            "guidance_scale": s.guidance_scale,
            **({"guidance_rescale": s.guidance_rescale} if s.guidance_rescale else {}),
            "batch_size": s.batch_size,
            "scheduler": type(self.pipe.scheduler).__name__,
            "model": "bundled model" if is_bundled(self.pipe) else model_name(self.pipe),
            "masker": "no masker" if attachment is None else type(attachment.masker).__name__,
            "prompts": list(dict.fromkeys(self.prompts)) if s.prompts else "held-out prompts of the shapes world",
            **extra,
            **values,
            "machine": machine(),
            "maskunet": __version__,
        }

    def with_seed(self, seed: int) -> AnalysisContext:
        """Return the same prompts with other noise.

        Args:
            seed: seed of the first image.
        """
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, seed=seed))


def _mask_sets(pipe: Any) -> int:
    """Return how many sets of masks the batch size must be a multiple of."""
    attachment = attachment_of(pipe)
    return 1 if attachment is None else math.lcm(1, *attachment.masker.mask_counts)


def build_context(pipe: Any, settings: AnalysisSettings, count: int, progress: Progress) -> AnalysisContext:
    """Choose the prompts, and whether the judge checks the images.

    Args:
        pipe: the pipeline.
        settings: settings of the analysis.
        count: number of images if the settings have neither count nor prompts.
        progress: reports progress.

    Raises:
        SettingError: there are no prompts, and the model is not the bundled one.
    """
    sets = _mask_sets(pipe)
    if settings.guidance_scale is None:
        settings = dataclasses.replace(settings, guidance_scale=default_guidance_scale(pipe))
    if settings.prompts is None:
        if not is_bundled(pipe):
            raise SettingError(
                "expected prompts, got none; only the bundled model has its own. Pass AnalysisSettings(prompts=...), or "
                "--prompt or --prompts-file"
            )
        requirements = held_out_prompts(settings.count or -(-count // sets) * sets)
        return AnalysisContext(pipe, settings, [p.prompt for p in requirements], requirements, progress)
    total = settings.count or -(-len(settings.prompts) // sets) * sets
    prompts = [settings.prompts[i % len(settings.prompts)] for i in range(total)]
    return AnalysisContext(pipe, settings, prompts, None, progress)


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return up to `count` evenly spaced numbers below `total`, the first and the last included.

    Args:
        total: upper bound.
        count: how many.
    """
    if total <= count:
        return list(range(total))
    return sorted({round(k * (total - 1) / (count - 1)) for k in range(count)})
