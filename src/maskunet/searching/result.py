"""The result of a search, and its files."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..files import make_folder
from ..images import save_png, to_pil
from ..maskers import MaskSchedule
from ..sampling.result import GeneratedImages
from .config import SearchConfig

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class SearchResult(GeneratedImages):
    """Images of a search with their masks, rewards and history.

    Args:
        tensor: images (B, 3, H, W), float32 in [0, 1], on the CPU.
        prompts: B captions.
        seeds: one seed per prompt, as passed to the search.
        settings: further JSON values to write beside each image.
        start_seeds: seeds of the noises that the search started from; drafts may choose others than `seeds`.
        base: images of the seeds' own noises without the search, (B, 3, H, W), or None.
        rewards: rewards of the images, (B,); NaN in the result of an `UnscoredError`, None in files.
        base_rewards: rewards of the base images, (B,), or None.
        masks: the searched masks by timestep, one set per sample. Attach them, or those of one sample
            (`masks.select(i)`), to other seeds. Masks of an attached masker are not included.
        history: one entry per evaluation: step, timestep, iteration, reward (B), density (B), seconds since the start;
            reward and density are None for samples that had left the step.
        config: settings of the search.
    """

    start_seeds: list[int]
    base: Tensor | None
    rewards: Tensor
    base_rewards: Tensor | None
    masks: MaskSchedule
    history: list[dict[str, Any]]
    config: SearchConfig

    @property
    def base_images(self) -> list[Image.Image]:
        """The base images as PIL images; empty without them."""
        return [] if self.base is None else to_pil(self.base)

    @cached_property
    def densities(self) -> Tensor:
        """Kept fraction of each sample's masks, (B,)."""
        return self.masks.density().mean(0)

    def record(self, index: int) -> dict[str, Any]:
        """Return one image's settings, rewards and history as JSON values.

        Args:
            index: index of the image.
        """
        entries = [h | {"reward": h["reward"][index], "density": h["density"][index]} for h in self.history]
        return super().record(index) | {
            "start_seed": self.start_seeds[index],
            "config": asdict(self.config),
            "reward": float(self.rewards[index]) if math.isfinite(self.rewards[index]) else None,
            "base_reward": None if self.base_rewards is None else float(self.base_rewards[index]),
            "density": float(self.densities[index]),
            "history": [h for h in entries if h["density"] is not None],
        }

    def save(self, folder: str | os.PathLike[str], *, first: int = 0) -> Path:
        """Write each image as `00000.png`, `base/00000.png`, `masks/00000/` and, last, its record `00000.json`.

        Args:
            folder: output folder; made if missing.
            first: number of the first image.

        Returns:
            The folder.

        Raises:
            DataError: a file cannot be written.
            CheckpointError: masks cannot be written.
        """
        path = self._prepare(folder, first)
        if self.base is not None:
            make_folder(path / "base")
        for i, image in enumerate(self.base_images):
            save_png(image, path / "base" / f"{first + i:05d}.png")
        for i, schedule in enumerate(self.masks.split()):
            schedule.save_pretrained(path / "masks" / f"{first + i:05d}")
        return super().save(path, first=first)
