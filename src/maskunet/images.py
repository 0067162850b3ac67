"""Image tensors as PIL images and PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .files import save_whole


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert images to PIL.

    Args:
        images: (N, 3, H, W) in [0, 1]; values outside are clamped.
    """
    values = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically.

    Args:
        image: the image.
        path: the file.

    Raises:
        DataError: it cannot be written.
    """
    save_whole(path, lambda part: image.save(part, "PNG"))
