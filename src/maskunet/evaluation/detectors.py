"""The seam of GenEval: what finds the objects of a picture and names their colours."""

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
    """Finds objects."""

    @property
    def names(self) -> Collection[str]:
        """The classes that it knows."""
        ...

    @property
    def palette(self) -> Collection[str]:
        """The colours that it knows."""
        ...

    def __call__(self, picture: Image.Image) -> list[Detection]:
        """Return the objects of an RGB picture: class, box, confidence, and the mask (H, W) where there is one."""
        ...

    def colours(self, picture: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Return the colour of each of these objects of one class."""
        ...


class JudgeDetector:
    """The judge of the shapes world."""

    names: Collection[str] = SHAPES
    palette: Collection[str] = COLOURS

    def __call__(self, picture: Image.Image) -> list[Detection]:
        """Return the objects of a picture of the shapes world."""
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return judge(pixels[None].float() / 255)[0]

    def colours(self, picture: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Return the colours that the judge has seen already."""
        return [str(found.colour) for found in objects]
