"""What is analysed: a pipeline with its masks, the prompts to draw, and the noise of each picture."""

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

from .. import zoo
from ..attaching.attachment import attachment_of
from ..errors import DataError
from ..machine import machine
from ..maskers import Masker
from ..sampling import pipeline_side
from ..sampling.stepwise import StepwiseSampler
from ..shapes.scenes import Prompt, held_out_prompts
from ..version import __version__
from .base import AnalysisSettings, Progress


@dataclass(frozen=True)
class Subject:
    """A pipeline and what it is asked to draw.

    Args:
        pipe: the pipeline, with or without masks.
        settings: settings of the analysis.
        texts: n prompts.
        requirements: what each asks for, where the judge can say whether a picture is right; None elsewhere.
        progress: told of progress.
    """

    pipe: Any
    settings: AnalysisSettings
    texts: list[str]
    requirements: list[Prompt] | None
    progress: Progress

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture's noise."""
        return [self.settings.seed + i for i in range(len(self.texts))]

    @property
    def guided(self) -> bool:
        """Whether a batch of the U-Net has an unconditional half."""
        return self.settings.guidance_scale > 1

    @property
    def masker(self) -> Masker:
        """The masker that is attached."""
        attachment = attachment_of(self.pipe)
        assert attachment is not None
        return attachment.masker

    @property
    def calls(self) -> int:
        """How many calls of the U-Net a picture takes; some schedulers make more than one a step."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(self.settings.num_inference_steps)
        return len(scheduler.timesteps)

    def batches(self) -> list[list[int]]:
        """Return the numbers of the pictures of each batch."""
        attachment = attachment_of(self.pipe)
        sets = 1 if attachment is None else math.lcm(1, *attachment.masker.sample_counts)
        size = -(-self.settings.batch_size // sets) * sets
        return [list(range(i, min(i + size, len(self.texts)))) for i in range(0, len(self.texts), size)]

    def samplers(
        self, word: str, share: tuple[float, float] = (0.0, 1.0)
    ) -> Iterator[tuple[list[int], StepwiseSampler]]:
        """Yield the numbers of each batch and its sampling loop, and tell how far they are.

        Args:
            word: what is being done.
            share: where the whole begins and ends, in [0, 1].
        """
        s, batches = self.settings, self.batches()
        for k, numbers in enumerate(batches):
            self.progress(share[0] + (share[1] - share[0]) * k / len(batches), word)
            yield (
                numbers,
                StepwiseSampler(
                    self.pipe,
                    [self.texts[i] for i in numbers],
                    seeds=[self.seeds[i] for i in numbers],
                    num_inference_steps=s.num_inference_steps,
                    guidance_scale=s.guidance_scale,
                ),
            )

    def pictures(self, word: str, share: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Return the pictures (n, 3, H, W) in [0, 1], on the CPU, and tell how far they are; see `samplers`."""
        s, batches, made = self.settings, self.batches(), []
        make = pipeline_side(self.pipe, num_inference_steps=s.num_inference_steps, guidance_scale=s.guidance_scale)
        for k, numbers in enumerate(batches):
            self.progress(share[0] + (share[1] - share[0]) * k / len(batches), word)
            made.append(make([self.texts[i] for i in numbers], [self.seeds[i] for i in numbers]))
        return torch.cat(made)

    def record(self, *used: str, **more: Any) -> dict[str, Any]:
        """Return what an analysis was made with, as JSON values.

        Args:
            used: names of settings that this analysis reads beside those that all do.
            more: further values.
        """
        s, pipe = self.settings, self.pipe
        attachment = attachment_of(pipe)
        own = {k: v.name if isinstance(v, Path) else v for k, v in asdict(s).items() if k in used}
        return {
            "n": len(self.texts),
            "seed": s.seed,
            "steps": s.num_inference_steps,
            "guidance_scale": s.guidance_scale,
            "batch_size": s.batch_size,
            "scheduler": type(pipe.scheduler).__name__,
            "model": "bundled model" if is_bundled(pipe) else _last_part(str(pipe.name_or_path or "")),
            "masker": "no masker" if attachment is None else type(attachment.masker).__name__,
            "prompts": list(dict.fromkeys(self.texts)) if s.prompts else "held-out prompts of the shapes world",
            **own,
            **more,
            "machine": machine(),
            "maskunet": __version__,
        }


def _last_part(name: str) -> str:
    # Of a folder its last part: the rest is this machine's business.
    return (Path(name).name if Path(name).is_dir() else name) or "a pipeline"


def is_bundled(pipe: Any) -> bool:
    """Return whether a pipeline was loaded from the bundled model's folder."""
    name = getattr(pipe, "name_or_path", None)
    return bool(name) and Path(str(name)).resolve() == zoo.path("shapes").resolve()


def choose_subject(pipe: Any, settings: AnalysisSettings, count: int, progress: Progress) -> Subject:
    """Choose the prompts and say who judges.

    Args:
        pipe: the pipeline.
        settings: settings of the analysis.
        count: pictures where the settings give neither count nor prompts.
        progress: told of progress.

    Raises:
        DataError: no prompts, and the model has none of its own.
    """
    attachment = attachment_of(pipe)
    sets = 1 if attachment is None else math.lcm(1, *attachment.masker.sample_counts)
    if settings.prompts is None:
        if not is_bundled(pipe):
            raise DataError(
                "expected prompts, got none; only the bundled model has its own. Give AnalysisSettings(prompts=...), or "
                "--prompt and --prompts-file"
            )
        found = held_out_prompts(settings.count or -(-count // sets) * sets)
        return Subject(pipe, settings, [p.prompt for p in found], found, progress)
    total = settings.count or -(-len(settings.prompts) // sets) * sets
    texts = [settings.prompts[i % len(settings.prompts)] for i in range(total)]
    return Subject(pipe, settings, texts, None, progress)


def with_texts(subject: Subject, seed: int) -> Subject:
    """Return the same prompts from other noise, that of `seed` and what follows."""
    return dataclasses.replace(subject, settings=dataclasses.replace(subject.settings, seed=seed))


def chosen(total: int, count: int) -> list[int]:
    """Return up to `count` numbers below `total`, evenly spaced, the first and the last among them."""
    if total <= count:
        return list(range(total))
    return sorted({round(k * (total - 1) / (count - 1)) for k in range(count)})


def by_task(requirements: Sequence[Prompt] | None, count: int) -> list[list[int]]:
    """Return the numbers of the pictures of each task; all of them together where there are no tasks."""
    if requirements is None:
        return [list(range(count))]
    tasks = dict.fromkeys(p.task for p in requirements)
    return [[i for i, p in enumerate(requirements) if p.task == task] for task in tasks]
