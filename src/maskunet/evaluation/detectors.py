"""The interface of GenEval's detectors, and the detector of the shapes world."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..metrics.geneval_rules import Detection
from ..shapes.judge import judge
from ..shapes.vocabulary import COLOURS, SHAPES


class Detector(Protocol):
    """Finds the objects of an image and names their colours."""

    @property
    def names(self) -> Collection[str]:
        """The classes that it knows."""
        ...

    @property
    def palette(self) -> Collection[str]:
        """The colours that it knows."""
        ...

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the objects of an image: class, box, confidence, and the mask (H, W) if it finds one.

        Args:
            image: an RGB image.
        """
        ...

    def colours(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Return the colour of each of these objects of one class.

        Args:
            image: an RGB image.
            objects: objects found in it.
        """
        ...


class JudgeDetector:
    """The judge of the shapes world."""

    names: Collection[str] = SHAPES
    palette: Collection[str] = COLOURS

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the objects of an image of the shapes world.

        Args:
            image: an RGB image.
        """
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return judge(pixels[None].float() / 255)[0]

    def colours(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Return the colours that the judge detected with the objects.

        Args:
            image: an RGB image.
            objects: objects found in it.
        """
        return [str(detection.colour) for detection in objects]
