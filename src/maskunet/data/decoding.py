"""One row of a data set: its image as RGB and its caption."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image, ImageOps

# Some of Pillow's readers are left out: the one of EPS starts a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")


def read_caption(value: Any) -> str | None:
    """Return the caption of a row, or None if it has none.

    Args:
        value: a string, or a sequence of strings, of which the first non-empty one counts.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    # JSON can hold half a surrogate pair, which would stop a tokenizer.
    return texts[0].strip().encode("utf-8", "replace").decode() if texts else None


def decode_image(value: Any, folder: Path) -> Image.Image:
    """Decode an image to RGB, upright and over white.

    Args:
        value: bytes, a path, or a mapping with "bytes" or "path".
        folder: the folder of relative paths.

    Raises:
        Exception: the bytes are damaged; every reader raises its own type.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.split("::")[-1].startswith("hf://"):  # an image folder streamed from the hub
        with fsspec.open(value, "rb") as stream:
            value = stream.read()
    elif isinstance(value, str):
        value = (folder / value if (folder / value).exists() else Path(value)).read_bytes()
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image: Image.Image = Image.open(io.BytesIO(value), formats=[f for f in _FORMATS if f in Image.OPEN])
        image.load()
        with contextlib.suppress(Exception):  # an unreadable orientation is no reason to lose an image
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these at 255
            values = np.nan_to_num(np.asarray(image, dtype=np.float64))
            maximum = 65535 if image.mode.startswith("I") else 1 if values.max() <= 1 else 255
            image = Image.fromarray((values / maximum * 255).round().clip(0, 255).astype(np.uint8))
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
