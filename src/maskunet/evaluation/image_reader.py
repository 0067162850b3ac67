"""The one reader of image files in evaluation; it sees what GenEval's detector sees.

GenEval's detector reads with OpenCV: upright by the EXIF tag, three channels without alpha, 8 bits of 16. Pillow's
`convert` agrees except for 16-bit greys, which it clips at 255 instead of scaling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DataError, first_line

logger = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}

#: Resizes an image to a square.
Fit = Callable[[Image.Image, int], Image.Image]


def read_image(file: Path) -> Image.Image:
    """Return an image as RGB: upright, without alpha, 8 bits per channel.

    Args:
        file: path of the image.

    Raises:
        DataError: it cannot be read, or holds floating-point values.
    """
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                values = np.asarray(upright).astype(np.int64).clip(0, 2**16 - 1)
                upright = Image.fromarray((values >> 8).astype(np.uint8))
            if upright.mode != "F":
                return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"expected an image, could not read {file}: {first_line(error)}") from error
    raise DataError(f"expected an image of 8 or 16 bits per channel, got floating-point values in {file}")


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder by name; those of its subfolders only if it has none itself.

    So the `base` beside a search's images does not count, and a data set with one folder per class does.

    Args:
        folder: the folder.

    Raises:
        DataError: there are none, or the folder holds the sides of a benchmark.
    """
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    files = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    inside = [file for file in files if file.parent == folder]
    below = [file for file in files if file.parent != folder]
    if not inside and not below:
        raise DataError(f"expected a folder with images ({', '.join(sorted(SUFFIXES))}), got {folder}")
    if not inside and (folder / "summary.json").is_file():
        raise DataError(
            f"expected the images of one side, {folder} is a benchmark's output with a folder per side; choose one of them"
        )
    if inside and below:
        names = sorted({file.relative_to(folder).parts[0] for file in below})
        logger.warning(
            "%d images directly in %s count, %d in its subfolders do not: %s",
            len(inside),
            folder,
            len(below),
            ", ".join(names),
        )
    return inside or below


def shorter_side_first(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side (Lanczos), then crop the centre.

    Args:
        image: the image.
        side: pixels per side.
    """
    if image.size == (side, side):
        return image
    scale = side / min(image.size)
    width, height = (max(side, round(d * scale)) for d in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def centre_first(image: Image.Image, side: int) -> Image.Image:
    """Crop the centre, then resize (Pillow's bicubic, which is antialiased), as CMMD's authors do.

    Args:
        image: the image.
        side: pixels per side.
    """
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    square = image.crop((left, top, left + shorter, top + shorter))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def read_images(
    files: Sequence[Path], resolution: int, batch_size: int = 64, fit: Fit = shorter_side_first
) -> Iterator[Tensor]:
    """Yield batches (B, 3, resolution, resolution) in [0, 1].

    Args:
        files: image files.
        resolution: pixels per side.
        batch_size: images per batch.
        fit: makes an image a square of that side.

    Raises:
        DataError: a file cannot be read.
    """
    for start in range(0, len(files), batch_size):
        batch = [np.array(fit(read_image(file), resolution)) for file in files[start : start + batch_size]]
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255


def count_black(files: Sequence[Path]) -> int:
    """Return how many images are black in every pixel, as a safety checker leaves those that it flags.

    Args:
        files: image files.

    Raises:
        DataError: a file cannot be read.
    """
    return sum(read_image(file).getextrema() == ((0, 0),) * 3 for file in files)


def black_note(name: str, count: int, total: int) -> str:
    """Return what black images mean and what to do about them; empty without any.

    Args:
        name: the side or folder.
        count: number of black images.
        total: number of images.
    """
    if not count:
        return ""
    return (
        f"{count} of {total} images of {name} are black and count as they are: the model's safety checker blackens what it "
        "flags, and float16 can overflow to black; if they should not, set pipe.safety_checker = None (or, in the folder's "
        'model_index.json, "safety_checker": [null, null]), or use float32, and generate again into a new folder'
    )


def warn_black(folder: Path, files: Sequence[Path]) -> int:
    """Warn of black images; return how many there are.

    Args:
        folder: their folder, for the message.
        files: image files.

    Raises:
        DataError: a file cannot be read.
    """
    count = count_black(files)
    if note := black_note(str(folder), count, len(files)):
        logger.warning("%s", note)
    return count
