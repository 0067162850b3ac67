"""Images from bytes and paths: RGB, upright, over white, from local files and the hub alone."""

from __future__ import annotations

import io
import struct
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


def tiff(values: np.ndarray, *, big_endian: bool = False, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of one strip, written byte by byte: Pillow writes few of these kinds."""
    order, mark = (">", b"MM\x00\x2a") if big_endian else ("<", b"II\x2a\x00")
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = [
        (256, width), (257, height), (258, values.dtype.itemsize * 8), (259, 1), (262, 0 if white_is_zero else 1),
        (273, 8), (277, 1), (278, height), (279, len(data)), (339, kind),
    ]  # fmt: skip
    table = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    return (
        mark
        + struct.pack(order + "I", 8 + len(data))
        + data
        + struct.pack(order + "H", len(entries))
        + table
        + bytes(4)
    )


def ramp(dtype: str, top: float) -> np.ndarray:
    """Rows from 0 to the top in 16 equal steps."""
    return (np.arange(256).reshape(16, 16) // 16 * (top / 15)).astype(dtype)


STEPS = [17 * i for i in range(16)]


DEEP = [
    ("uint16", 65535, STEPS),
    ("uint16", 255, [0] * 8 + [1] * 8),  # dark: sixteen bits are what they are
    ("int16", 32767, STEPS),
    ("uint32", 255, STEPS),
    ("uint32", 65535, STEPS),
    ("uint32", 2**32 - 1, STEPS),
    ("int32", 65535, STEPS),
    ("int32", 2**31 - 1, STEPS),
    ("float32", 1, STEPS),
    ("float32", 1.25, [min(255, round(i / 15 * 1.25 * 255)) for i in range(16)]),  # above white
    ("float32", 255, STEPS),
    ("float32", 65535, STEPS),
]


@pytest.mark.parametrize(
    ("dtype", "top", "grey", "big_endian"),
    # Pillow reads no big-endian uint32.
    [(*kind, big) for kind in DEEP for big in (False, True) if not (big and kind[0] == "uint32")],
)
def test_deep_tiffs_keep_their_shades(
    tmp_path: Path, dtype: str, top: float, grey: list[int], big_endian: bool
) -> None:
    image = open_one(tmp_path / "set", tiff(ramp(dtype, top), big_endian=big_endian), "a.tif")
    values = np.asarray(image)
    assert (values == values[:, :1, :1]).all()
    np.testing.assert_allclose(values[:, 0, 0], grey, atol=1)


def test_deep_tiffs_whose_white_is_zero(tmp_path: Path) -> None:
    for number, (dtype, top) in enumerate((("uint16", 65535), ("float32", 1), ("uint8", 255))):
        image = open_one(tmp_path / str(number), tiff(ramp(dtype, top), white_is_zero=True), "a.tif")
        np.testing.assert_allclose(np.asarray(image)[:, 0, 0], STEPS[::-1], atol=1)


def test_values_that_are_no_numbers_or_negative(tmp_path: Path) -> None:
    values = ramp("float32", 1)
    values[0, 0], values[0, 1], values[0, 2], values[0, 3] = np.nan, np.inf, -np.inf, -5
    shown = np.asarray(open_one(tmp_path / "float", tiff(values), "a.tif"))[..., 0]
    assert shown[0, :4].tolist() == [0, 255, 0, 0]
    np.testing.assert_allclose(shown[1:, 0], STEPS[1:], atol=1)
    below = np.full((16, 16), -7, np.int32)
    assert not np.asarray(open_one(tmp_path / "int", tiff(below), "a.tif")).any()


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
