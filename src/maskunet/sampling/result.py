"""Generated images with the prompts, seeds and settings that made them; every way to generate returns them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import DataError, first_line
from ..files import make_folder, save_text
from ..images import save_png, to_pil
from ..version import __version__

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class GeneratedImages:
    """Images with their prompts, seeds and settings.

    Args:
        tensor: images (N, 3, H, W), float32 in [0, 1], on the CPU.
        prompts: N captions.
        seeds: N seeds; image i starts from the noise of seed i.
        settings: settings of the generation, as JSON values.
    """

    tensor: Tensor
    prompts: list[str]
    seeds: list[int]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[Image.Image]:
        """The images as PIL images, like `.images` of a diffusers pipeline's output."""
        return to_pil(self.tensor)

    def __len__(self) -> int:
        return len(self.tensor)

    def record(self, index: int) -> dict[str, Any]:
        """Return the JSON values that `save` writes beside an image.

        Args:
            index: index of the image.
        """
        return {
            "maskunet": __version__,
            "prompt": self.prompts[index],
            "seed": self.seeds[index],
            **self.settings,
        }

    def save(self, folder: str | os.PathLike[str], *, first: int = 0, overwrite: bool = True) -> Path:
        """Write each image as `00000.png` with its record `00000.json`; records come last.

        Args:
            folder: output folder; made if missing.
            first: number of the first image.
            overwrite: replace images of these numbers.

        Returns:
            The folder.

        Raises:
            DataError: a file cannot be written, or would be replaced without `overwrite`.
        """
        path = self._prepare(folder, first, overwrite=overwrite)
        for i, image in enumerate(self.images):
            name = f"{first + i:05d}"
            save_png(image, path / f"{name}.png")
            save_text(json.dumps(self.record(i), indent=1) + "\n", path / f"{name}.json")
        return path

    def _prepare(self, folder: str | os.PathLike[str], first: int, *, overwrite: bool) -> Path:
        """Make the output folder and remove old records, which must not describe new images."""
        path = Path(folder)
        records = [path / f"{first + i:05d}.json" for i in range(len(self))]
        # An image without its record was interrupted and is no result.
        if not overwrite and (existing := [record for record in records if record.exists()]):
            raise DataError(
                f"expected a folder without results of these numbers, got {path} with {existing[0].name}; choose another "
                "folder, or pass overwrite=True"
            )
        make_folder(path)
        for record in records:
            try:
                record.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(
                    f"expected a record that can be replaced, got {record}: {first_line(error)}"
                ) from error
        return path
