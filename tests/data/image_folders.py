"""Image folders for the tests of the data package."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise_image(seed: int = 0, size: tuple[int, int] = (20, 30)) -> Image.Image:
    """A image of a given width and height."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_folder(folder: Path, rows: list[tuple[str, bytes | None, object]]) -> Path:
    """Write an image folder; None for the bytes leaves a file out."""
    folder.mkdir(parents=True)
    for name, data, _ in rows:
        if data is not None:
            (folder / name).write_bytes(data)
    lines = [json.dumps({"file_name": name, "text": caption}) for name, _, caption in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def readable(count: int, size: tuple[int, int] = (20, 30)) -> list[tuple[str, bytes | None, object]]:
    return [(f"{i}.png", encoded(noise_image(i, size)), f"number {i}") for i in range(count)]
