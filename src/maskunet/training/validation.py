"""Validation of a run: a paired comparison with the base model on fixed samples and noise, and images of fixed prompts.

On fixed noise, a paired difference shows an effect long before images do.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..attaching import attachment_of, record
from ..metrics.intervals import student
from ..relaxation import derive_seed
from ..sampling.generation import generate
from .batches import Batch, BatchSampler
from .config import TrainConfig
from .prediction_errors import PredictionErrors


class Validation:
    """Fixed samples, with the base model's losses on them.

    Base and trained losses are those of one network, except for what is trained: adapters and masks that stay in effect
    while the method trains are in both.

    Args:
        pipe: the pipeline, before the method is installed on it, computing as the base of the comparison.
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
        seed, images = derive_seed(config.seed, "validation"), list[int]()
        for positions in sampler.split_positions(range(config.validation_samples), self.batch_size, seed):
            images += [sampler.index(position, seed) for position in positions]
            self.batches.append(sampler(positions, seed=seed, dropout=0.0))
        self.base_errors = [self._errors(batch) for batch in self.batches]
        #: The image of each pair; a set smaller than `validation_samples` has several pairs per image.
        self.images = torch.tensor(images)

    @torch.no_grad()
    def _errors(self, batch: Batch) -> Tensor:
        with self.accelerator.autocast():
            return self.prediction_errors(batch)

    def compare(self) -> dict[str, float]:
        """Return the mean gain over the base loss with Student's 95 % interval, and the density of the masks.

        A gain is that of an image, the mean over its pairs. A single image has no interval. The batches are shared among the
        processes.
        """
        if not self.batches:
            return {}
        world_size, rank = self.accelerator.num_processes, self.accelerator.process_index
        gains = [torch.zeros_like(base) for base in self.base_errors]
        for i in range(rank, len(gains), world_size):
            gains[i] = self.base_errors[i] - self._errors(self.batches[i])
        # The other processes hold zeros where this one holds values.
        pairs = self.accelerator.reduce(torch.cat(gains), "sum").cpu().double()
        estimate = student(_means_by_image(pairs, self.images))
        figures = {"gain": estimate.value}
        if math.isfinite(estimate.high):
            figures["gain_ci95"] = estimate.high - estimate.value
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


def _means_by_image(values: Tensor, images: Tensor) -> Tensor:
    """Return the mean of the values of each image.

    Args:
        values: (N,).
        images: the image of each value, (N,).
    """
    _, index, counts = images.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(counts), dtype=values.dtype).index_add_(0, index, values) / counts
