"""What a search returns, and its files."""

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
    """Images of a search, with the masks that made them.

    Args:
        tensor: images (B, 3, H, W) in [0, 1], on the CPU.
        prompts: B captions.
        seeds: B seeds that were asked for.
        settings: further JSON values to keep beside each image.
        start_seeds: seeds of the noises that the search started from; others than `seeds` where drafts chose.
        base: images of the seeds' own noises without the search, or None.
        rewards: of the images, (B,); NaN in the result of an `UnscoredError`, None in files.
        base_rewards: of the base images, (B,), or None.
        masks: the masks found, by timestep, one set per sample. Attach them, or one sample's (`masks.select(i)`), to other
            seeds. Masks of a masker that lay under the search are not among them.
        history: one entry per evaluation: step, timestep, iteration, reward (B), density (B), seconds since the start;
            reward and density are None for samples that had left the step.
        config: the settings of the search.
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
        """Kept fraction of the masks of each sample, (B,)."""
        return self.masks.density().mean(0)

    def record(self, index: int) -> dict[str, Any]:
        """Return one image's settings, rewards and history as JSON values.

        Args:
            index: number of the image.
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
        """Write for each image `00000.png`, `base/00000.png`, `masks/00000/` and, last, `00000.json`.

        Args:
            folder: where to; made if missing.
            first: number of the first image.

        Returns:
            The folder.

        Raises:
            DataError: it cannot be written.
            CheckpointError: the masks cannot be written.
        """
        path = Path(folder)
        for i in range(len(self)):  # an old record must not describe a new image
            (path / f"{first + i:05d}.json").unlink(missing_ok=True)
        for i, image in enumerate(self.base_images):
            make_folder(path / "base")
            save_png(image, path / "base" / f"{first + i:05d}.png")
        for i, schedule in enumerate(self.masks.split()):
            schedule.save_pretrained(path / "masks" / f"{first + i:05d}")
        return super().save(path, first=first)
