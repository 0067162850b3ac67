"""What a search hands back, and its files."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import save
from ..errors import CheckpointError
from ..maskers import MaskSchedule
from ..version import __version__
from .config import SearchConfig


@dataclass(frozen=True)
class SearchResult:
    """What `search` found.

    Args:
        pictures: (B, 3, H, W) in [0, 1], on the CPU.
        base: pictures of the prompts' own seeds without the search, or None.
        rewards: of the pictures, (B,); NaN in the result of an `UnscoredError`, None in files.
        base_rewards: of the base pictures, (B,), or None.
        masks: the masks found, by timestep, a set a sample; attach them, or one sample's (`masks.select(i)`), to other
            seeds. Masks of a masker that lay under the search are not among them.
        history: an entry an evaluation: step, timestep, iteration, reward (B), density (B), seconds since the start;
            the two are None for samples that were done with the step.
        config: the settings.
        settings: prompts, seeds, and the seeds of the noises that the search started from: others where candidates were
            drafted.
    """

    pictures: Tensor
    base: Tensor | None
    rewards: Tensor
    base_rewards: Tensor | None
    masks: MaskSchedule
    history: list[dict[str, Any]]
    config: SearchConfig
    settings: dict[str, Any]

    @property
    def images(self) -> list[Any]:
        """The pictures as PIL images."""
        return to_images(self.pictures)

    @property
    def base_images(self) -> list[Any]:
        """The base pictures as PIL images; empty without them."""
        return [] if self.base is None else to_images(self.base)

    def summary(self, index: int, density: Tensor | None = None) -> dict[str, Any]:
        """Return one picture's settings, rewards and history as JSON values; `density` (B) spares computing it."""
        density = self.masks.density().mean(0) if density is None else density
        entries = [h | {"reward": h["reward"][index], "density": h["density"][index]} for h in self.history]
        return {
            "maskunet": __version__,
            "prompt": self.settings["prompts"][index],
            "seed": self.settings["seeds"][index],
            "start_seed": self.settings["start_seeds"][index],
            "config": asdict(self.config),
            "reward": float(self.rewards[index]) if math.isfinite(self.rewards[index]) else None,
            "base_reward": None if self.base_rewards is None else float(self.base_rewards[index]),
            "density": float(density[index]),
            "history": [h for h in entries if h["density"] is not None],
        }

    def save(self, folder: str | os.PathLike[str], *, first: int = 0, **settings: Any) -> Path:
        """Write for each picture `00000.png`, `base/00000.png`, `masks/00000/`, which `load` reads, and `00000.json`.

        Args:
            folder: where to; made if missing.
            first: number of the first picture.
            settings: further JSON values to keep beside each picture.

        Returns:
            The folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        path = Path(folder)
        try:
            for i in range(len(self.pictures)):  # an older record must not lie beside a new picture
                (path / f"{first + i:05d}.json").unlink(missing_ok=True)
            for where, images in ((path, self.images), (path / "base", self.base_images)):
                if images:
                    where.mkdir(parents=True, exist_ok=True)
                for i, image in enumerate(images):
                    part = where / f"{first + i:05d}.png.part"
                    image.save(part, "PNG")
                    part.replace(where / f"{first + i:05d}.png")
            density = self.masks.density().mean(0)
            for i, schedule in enumerate(self.masks.split()):
                name = f"{first + i:05d}"
                save(schedule, path / "masks" / name)
                part = path / f"{name}.json.part"
                part.write_text(json.dumps(settings | self.summary(i, density), indent=1) + "\n")
                part.replace(path / f"{name}.json")  # last: a picture with its settings is a finished one
        except OSError as error:
            raise CheckpointError(f"expected a folder that can be written, got {path}: {error}") from error
        return path


def to_images(pictures: Tensor) -> list[Any]:
    """Turn pictures (N, 3, H, W) in [0, 1] into PIL images."""
    from PIL import Image

    values = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(v) for v in values]
