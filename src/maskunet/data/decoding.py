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
#: Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_OVERSHOOT = 1.5


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
        tags = {tag: _tag_value(image, tag) for tag in (_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT)}
        with contextlib.suppress(Exception):  # an unreadable orientation is no reason to lose an image
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these at 255
            image = _to_grey(np.asarray(image), tags)
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _tag_value(image: Image.Image, tag: int) -> int | None:
    """Return the first value of a TIFF tag, or None if the image has none."""
    value = getattr(image, "tag_v2", {}).get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def _to_grey(values: np.ndarray[Any, Any], tags: Mapping[int, int | None]) -> Image.Image:
    """Return grey values of more than eight bits as an image of eight.

    Up to 16 bits, white is the highest value of the format. Values of 32 bits rarely fill theirs: white is the highest value
    of the smallest usual range that holds the image, 1 (floats only), 255, 65535, or all of it.
    """
    bits, is_unsigned = tags[_BITS], tags[_SAMPLE_FORMAT] in (None, 1)
    if values.dtype == np.int32 and bits == 32 and is_unsigned:
        values = values.view(np.uint32)  # Pillow's mode "I" is signed
    is_float = np.issubdtype(values.dtype, np.floating)
    values = np.nan_to_num(values.astype(np.float64), posinf=np.inf, neginf=0.0)
    if bits is not None and bits < 32:
        white = 2.0 ** (bits if is_unsigned else bits - 1) - 1
    elif bits is None and not is_float:  # a PNG, PGM or JPEG 2000, which Pillow scales to 16 bits
        white = 65535.0
    else:
        top = values[np.isfinite(values)].max(initial=0.0)
        # Resampled floats overshoot white a little.
        limits = (1.0, 255.0, 65535.0) if is_float else (255.0, 65535.0)
        full = 2.0**32 - 1 if is_unsigned or is_float else 2.0**31 - 1
        white = next((limit for limit in limits if top <= limit * (_OVERSHOOT if is_float else 1)), full)
    shares = (values / white).clip(0, 1)
    if tags[_PHOTOMETRIC] == 0:  # white is zero; Pillow inverts only 8 bits
        shares = 1 - shares
    return Image.fromarray((shares * 255).round().astype(np.uint8))
