"""Validation of a run: a paired comparison with the base model on fixed samples and noise, and images of fixed prompts.

On fixed noise, a paired difference shows an effect long before images do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..attaching import attachment_of, disabled, record
from ..relaxation import derive_seed
from ..sampling.generation import generate
from .batches import Batch, BatchSampler
from .config import TrainConfig
from .prediction_errors import PredictionErrors


class Validation:
    """Fixed samples, with the base model's losses on them.

    Args:
        pipe: the pipeline, before the method is installed on it.
        sampler: makes batches of the held-out set.
        prediction_errors: errors of the network's predictions.
        config: settings of the run.
        folder: the run's folder; images go to `validation/`.
        accelerator: the run's accelerator; both losses are computed in its precision.
    """

    def __init__(
        self,
        pipe: Any,
        sampler: BatchSampler,
        prediction_errors: PredictionErrors,
        config: TrainConfig,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.pipe, self.prediction_errors, self.config, self.folder = pipe, prediction_errors, config, folder
        self.accelerator = accelerator
        self.batch_size = config.validation_batch_size or config.train_batch_size
        self.batches = []
        seed = derive_seed(config.seed, "validation")
        for start in range(0, config.validation_samples, self.batch_size):
            positions = range(start, min(start + self.batch_size, config.validation_samples))
            self.batches.append(sampler(positions, seed=seed, dropout=0.0))
        with disabled(pipe):
            self.base_errors = [self._errors(batch) for batch in self.batches]

    @torch.no_grad()
    def _errors(self, batch: Batch) -> Tensor:
        with self.accelerator.autocast():
            return self.prediction_errors(batch)

    def compare(self) -> dict[str, float]:
        """Return the mean gain over the base loss with its 95 % interval, and the density of the masks.

        The batches are shared among the processes.
        """
        if not self.batches:
            return {}
        world_size, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = list(zip(self.base_errors, self.batches, strict=True))[rank::world_size]
        gains = [base - self._errors(batch) for base, batch in share]
        device = self.base_errors[0].device
        # Sums are exchanged, because processes may hold different numbers of samples.
        gain = torch.cat(gains).double() if gains else torch.zeros(0, dtype=torch.double, device=device)
        sums = torch.stack([torch.tensor(float(len(gain)), device=device).double(), gain.sum(), gain.square().sum()])
        count, total, squares = (float(x) for x in self.accelerator.reduce(sums, "sum"))
        mean = total / count
        deviation = max(0.0, squares / count - mean**2) ** 0.5
        figures = {"gain": mean, "gain_ci95": 1.96 * deviation / count**0.5}
        if attachment_of(self.pipe) is not None:
            figures["density"] = self.density()
        return figures

    @torch.no_grad()
    def density(self) -> float:
        """Return the mean density of the masks, over all masked weights, on the first batch."""
        with record(self.pipe, keep="density") as trace:
            self._errors(self.batches[0])
        return trace.overall_density()[-1]

    def save_images(self, step: int) -> None:
        """Generate the validation prompts, prompt i from the noise of seed i, to `validation/step-000250/00000.png`.

        Args:
            step: number of steps that are done.

        Raises:
            DataError: the images cannot be written.
        """
        prompts = list(self.config.validation_prompts)
        if not prompts:
            return
        generate(
            self.pipe,
            prompts,
            seeds=0,
            num_inference_steps=self.config.validation_num_inference_steps,
            guidance_scale=self.config.validation_guidance_scale,
            batch_size=min(len(prompts), self.batch_size),
            progress=False,
        ).save(self.folder / "validation" / f"step-{step:06d}")
