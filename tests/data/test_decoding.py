"""Images from bytes and paths: RGB, upright, over white, from local files and the hub alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from image_folders import encoded, image_folder, noise_image
from PIL import Image

from maskunet.data import ImageCaptions, decoding, open_images


def open_one(folder: Path, data: bytes, name: str = "a.png") -> Image.Image:
    """Return the one image of a folder with these bytes."""
    ((image, _),) = open_images(image_folder(folder, [(name, data, "x")]))
    assert image.mode == "RGB"
    return image


def test_transparent_images_lie_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (10, 10), (255, 0, 0, 128))
    half.putpixel((0, 0), (0, 0, 0, 0))
    image = open_one(tmp_path / "rgba", encoded(half))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((5, 5)) == (255, 127, 127)
    grey = open_one(tmp_path / "la", encoded(Image.new("LA", (10, 10), (0, 0))))
    assert grey.getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    indexed = open_one(tmp_path / "p", encoded(palette, transparency=0))
    assert indexed.getpixel((0, 0)) == (255, 255, 255)
    assert indexed.getpixel((5, 5)) == (10, 20, 30)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = open_one(tmp_path / "set", encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "a.jpg")
    red, green, blue = image.getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_images_are_turned_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (32, 16), "blue")
    lying.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left half comes to the top
    image = open_one(tmp_path / "set", encoded(lying, "JPEG", exif=exif, quality=95), "a.jpg")
    assert image.size == (16, 32)
    assert image.getpixel((8, 4))[0] > 200
    assert image.getpixel((8, 28))[2] > 200


def test_deep_grey_keeps_its_shades(tmp_path: Path) -> None:
    values = np.full((10, 10), 32768, dtype=np.uint16)
    values[0, 0], values[9, 9] = 0, 65535
    image = open_one(tmp_path / "set", encoded(Image.fromarray(values)))
    assert [image.getpixel(at)[0] for at in ((0, 0), (5, 5), (9, 9))] == [0, 128, 255]
    floats = Image.fromarray(np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10))
    assert open_one(tmp_path / "float", encoded(floats, "TIFF"), "a.tiff").getpixel((9, 9)) == (255, 255, 255)


def test_remote_images_are_fetched_from_the_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []

    def fetch(path: str, mode: str) -> io.BytesIO:
        requests.append(path)
        return io.BytesIO(encoded(noise_image(0)))

    monkeypatch.setattr(decoding.fsspec, "open", fetch)
    paths = [
        "hf://datasets/a/b/0.png",
        "zip://0.png::hf://datasets/a/b.zip",
        "http://localhost/0.png",
        "memory://0.png",
    ]
    dataset = ImageCaptions([{"image": {"bytes": None, "path": p}, "text": "x"} for p in paths], "some")
    assert len(list(dataset)) == 2
    assert requests == paths[:2]
    assert dataset.skipped == {"unreadable image": 2}
