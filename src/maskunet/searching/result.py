"""The result of a search, and its files."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..files import make_folder
from ..images import save_png, to_pil
from ..maskers import MaskSchedule
from ..sampling.final_step import is_black
from ..sampling.result import GeneratedImages
from .config import SearchConfig

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class SearchResult(GeneratedImages):
    """Images of a search with their masks, rewards and history.

    An image is the better one by reward of the search's and the seed's own, if that was made (`compare_base`). Where the
    seed's own is better, its masks keep every weight and its start seed is the seed, so that seeds and masks give the image
    again either way.

    Args:
        tensor: images (B, 3, H, W), float32 in [0, 1], on the CPU.
        prompts: B captions.
        seeds: one seed per prompt, as passed to the search.
        settings: further JSON values to write beside each image.
        start_seeds: seeds of the images' noises; drafts may choose others than `seeds`.
        base: images of the seeds' own noises without the search, (B, 3, H, W), or None.
        rewards: rewards of the images, (B,); NaN in the result of an `UnscoredError`, None in files.
        base_rewards: rewards of the base images, (B,), or None.
        masks: the searched masks by timestep, one set per sample. Attach them, or those of one sample
            (`masks.select(i)`), to other seeds. Masks of an attached masker are not included.
        search_rewards: rewards of the search's own images, (B,), which `rewards` exceed where the base is better.
        history: one entry per evaluation: step, timestep, iteration, reward (B), density (B), seconds since the start;
            reward and density are None for samples that had left the step.
        config: settings of the search.
    """

    start_seeds: list[int]
    base: Tensor | None
    rewards: Tensor
    base_rewards: Tensor | None
    masks: MaskSchedule
    search_rewards: Tensor
    history: list[dict[str, Any]]
    config: SearchConfig

    def better_of(self, base: Tensor, base_rewards: Tensor) -> Self:
        """Return the result with the images of the seeds' own noises, and with those of them that have a higher reward.

        An image that the safety checker has blackened loses against one that it has not.

        Args:
            base: images of the seeds' own noises without the search, (B, 3, H, W).
            base_rewards: their rewards, (B,).
        """
        black, base_black = is_black(self.tensor), is_black(base)
        is_better = torch.where(black == base_black, base_rewards > self.rewards, black)
        tensor = torch.where(is_better[:, None, None, None], base, self.tensor)
        seeds = zip(is_better.tolist(), self.seeds, self.start_seeds, strict=True)
        return replace(
            self,
            tensor=tensor,
            start_seeds=[seed if better else start for better, seed, start in seeds],
            base=base,
            rewards=torch.where(is_better, base_rewards, self.rewards),
            base_rewards=base_rewards,
            masks=self.masks.without(is_better.nonzero().flatten().tolist()),
        )

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
            "search_reward": float(self.search_rewards[index]) if math.isfinite(self.search_rewards[index]) else None,
            "density": float(self.densities[index]),
            "history": [h for h in entries if h["density"] is not None],
        }

    def save(self, folder: str | os.PathLike[str], *, first: int = 0, overwrite: bool = False) -> Path:
        """Write each image as `00000.png`, `base/00000.png`, `masks/00000/` and, last, its record `00000.json`.

        Args:
            folder: output folder; made if missing.
            first: number of the first image.
            overwrite: replace images of these numbers.

        Returns:
            The folder.

        Raises:
            DataError: the folder has a record of one of these numbers, or a file cannot be written.
            CheckpointError: masks cannot be written.
        """
        path = self._prepare(folder, first, overwrite=overwrite)
        if self.base is not None:
            make_folder(path / "base")
        for i, image in enumerate(self.base_images):
            save_png(image, path / "base" / f"{first + i:05d}.png")
        for i, schedule in enumerate(self.masks.split()):
            schedule.save_pretrained(path / "masks" / f"{first + i:05d}")
        return super().save(path, first=first, overwrite=True)
