"""Images resized and cropped to a size: a square, or the aspect-ratio bucket that is nearest."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..relaxation import derive_seed
from .buckets import nearest_bucket

Size = tuple[int, int]


@dataclass(frozen=True)
class Cropper:
    """Crops of images; everything random follows from the seed and an image's row.

    Args:
        sizes: heights and widths to choose from by aspect ratio, in pixels.
        center_crop: crop the centre; else a random part.
        random_flip: mirror half of the images.
        seed: seed of crops and flips.
    """

    sizes: tuple[Size, ...]
    center_crop: bool
    random_flip: bool
    seed: int

    def __call__(self, image: Image.Image, row: int) -> tuple[Tensor, tuple[int, ...]]:
        """Return the crop (3, H, W), uint8, and its time ids.

        Args:
            image: the image, RGB.
            row: its row in the data set.
        """
        size = nearest_bucket(image.height, image.width, self.sizes) if len(self.sizes) > 1 else self.sizes[0]
        crop, top_left = crop_image(image, size, self.center_crop, self.random_flip, derive_seed(self.seed, row))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
        return pixels, (image.height, image.width, *top_left, *size)


def crop_image(image: Image.Image, size: Size, center: bool, flip: bool, seed: int) -> tuple[Image.Image, Size]:
    """Resize an image until it just covers a size, and crop it.

    Args:
        image: the image.
        size: height and width of the crop, in pixels.
        center: crop the centre; else a random part.
        flip: mirror the image or not, at random.
        seed: seed of both.

    Returns:
        The crop, and its top and left in the resized and mirrored image.
    """
    generator = random.Random(seed)
    shares, is_mirrored = (generator.random(), generator.random()), generator.random() < 0.5 and flip
    crop_height, crop_width = size
    scale = max(crop_height / image.height, crop_width / image.width)
    height, width = max(crop_height, round(image.height * scale)), max(crop_width, round(image.width * scale))
    top, left = (
        round(margin / 2) if center else int(share * (margin + 1))
        for margin, share in zip((height - crop_height, width - crop_width), shares, strict=True)
    )
    # Only the cropped part is resized, so that an image of extreme shape does not fill the memory.
    start = width - crop_width - left if is_mirrored else left
    x, y = image.width / width, image.height / height
    right, bottom = min((start + crop_width) * x, image.width), min((top + crop_height) * y, image.height)
    box = (start * x, top * y, right, bottom)
    crop = image.resize((crop_width, crop_height), Image.Resampling.LANCZOS, box)
    return (ImageOps.mirror(crop) if is_mirrored else crop), (top, left)
