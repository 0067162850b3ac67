"""Watching a run: the paired comparison of losses on fixed samples and noise, and pictures of fixed prompts.

A paired difference on fixed noise sees an effect long before pictures do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..attaching.attachment import attachment_of, disabled, record
from ..diffusion import diffusion_errors
from ..relaxation import derive_seed
from ..sampling.generation import generate
from .batches import Batch, Sampler
from .config import TrainConfig


class Validation:
    """Fixed samples with their base losses, taken before anything is put onto the pipeline.

    Args:
        pipe: the pipeline, as yet without the method.
        sampler: makes batches of the held-out set.
        scheduler: the noise schedule.
        config: how many samples, which pictures.
        folder: the run's folder; pictures go to `validation/`.
        accelerator: the run's accelerator; both sides are computed in its precision.
    """

    def __init__(
        self, pipe: Any, sampler: Sampler, scheduler: Any, config: TrainConfig, folder: Path, accelerator: Accelerator
    ) -> None:
        self.pipe, self.scheduler, self.config, self.folder = pipe, scheduler, config, folder
        self.accelerator = accelerator
        self.batches = []
        seed = derive_seed(config.seed, "validation")
        chunk = config.validation_batch_size or config.train_batch_size
        for start in range(0, config.validation_samples, chunk):
            places = range(start, min(start + chunk, config.validation_samples))
            self.batches.append(sampler(places, seed=seed, dropout=0.0))
        with disabled(pipe):
            self.base = [self._errors(batch) for batch in self.batches]

    @torch.no_grad()
    def _errors(self, batch: Batch) -> Tensor:
        rest = (batch.latents, batch.embeds, batch.noise, batch.timesteps)
        with self.accelerator.autocast():
            return diffusion_errors(self.pipe.unet, self.scheduler, *rest, **batch.conditions)

    def compare(self) -> dict[str, float]:
        """Return the mean gain over the base loss with its 95 % interval, and the masks' density.

        The batches are shared among the processes.
        """
        if not self.batches:
            return {}
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(zip(self.base, self.batches, strict=True))[rank::world]
        gains = [base - self._errors(batch) for base, batch in mine]
        device = self.base[0].device
        # Sums travel, so that processes may hold different numbers of samples.
        gain = torch.cat(gains).double() if gains else torch.zeros(0, dtype=torch.double, device=device)
        sums = torch.stack([torch.tensor(float(len(gain)), device=device).double(), gain.sum(), gain.square().sum()])
        count, total, squares = (float(x) for x in self.accelerator.reduce(sums, "sum"))
        mean = total / count
        spread = max(0.0, squares / count - mean**2) ** 0.5
        entry = {"gain": mean, "gain_ci95": 1.96 * spread / count**0.5}
        if attachment_of(self.pipe) is not None:
            entry["density"] = self.density()
        return entry

    @torch.no_grad()
    def density(self) -> float:
        """Return the mean density of the masks over all weights on the first batch."""
        with record(self.pipe, keep="density") as trace:
            self._errors(self.batches[0])
        return trace.overall_density()[-1]

    def draw(self, step: int) -> None:
        """Draw the validation prompts, each from a fixed seed, to `validation/step-000250/0.png`."""
        prompts = list(self.config.validation_prompts)
        if not prompts:
            return
        generate(
            self.pipe,
            prompts,
            seeds=0,
            num_inference_steps=self.config.validation_num_inference_steps,
            guidance_scale=self.config.validation_guidance_scale,
            batch_size=min(len(prompts), self.config.validation_batch_size or self.config.train_batch_size),
            progress=False,
        ).save(self.folder / "validation" / f"step-{step:06d}")
