"""The reader of image files: what GenEval's detector sees of each kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskunet.errors import DataError
from maskunet.evaluation.image_reader import centre_first, count_black, image_files, read_image, read_images

RED, BLUE = (200, 10, 20), (30, 40, 250)


def pixels(file: Path) -> list[list[list[int]]]:
    image = read_image(file)
    assert image.mode == "RGB"
    return np.array(image).tolist()  # type: ignore[no-any-return]


def test_the_orientation_of_exif_is_applied(tmp_path: Path) -> None:
    lying = Image.new("RGB", (2, 1), RED)
    lying.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left half comes to the top
    lying.save(tmp_path / "a.png", exif=exif)
    assert pixels(tmp_path / "a.png") == [[list(RED)], [list(BLUE)]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_greys_of_16_bits_keep_their_high_byte(tmp_path: Path, dtype: type) -> None:
    """Pillow's own conversion clips them to white; OpenCV, and so GenEval's detector, does not."""
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert [pixel[0] for pixel in pixels(tmp_path / "a.tiff")[0]] == [0, 0, 1, 0x12, 0xFF]
    if dtype == np.uint16:
        Image.fromarray(values).save(tmp_path / "a.png")
        assert pixels(tmp_path / "a.png") == pixels(tmp_path / "a.tiff")


def test_alpha_is_dropped_and_palettes_are_resolved(tmp_path: Path) -> None:
    transparent = Image.new("RGBA", (1, 1), (*RED, 0))
    transparent.save(tmp_path / "rgba.png")
    transparent.convert("RGB").quantize(2).save(tmp_path / "palette.png", transparency=0)
    Image.new("LA", (1, 1), (90, 0)).save(tmp_path / "grey.png")
    Image.new("1", (1, 1), 1).save(tmp_path / "bit.png")
    assert pixels(tmp_path / "rgba.png") == pixels(tmp_path / "palette.png") == [[list(RED)]]
    assert pixels(tmp_path / "grey.png") == [[[90, 90, 90]]]
    assert pixels(tmp_path / "bit.png") == [[[255, 255, 255]]]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"8 or 16 bits per channel, got floating-point values in .*a\.tiff"):
        read_image(tmp_path / "a.tiff")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match=r"could not read .*b\.png") as error:
        read_image(tmp_path / "b.png")
    assert "\n" not in str(error.value)


def test_centre_first_crops_before_it_resizes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = Image.fromarray(values[:, 15:35]).resize((8, 8), Image.Resampling.BICUBIC)
    (batch,) = read_images([tmp_path / "a.png"], 8, fit=centre_first)
    assert (batch[0] * 255).round().permute(1, 2, 0).tolist() == np.array(expected).tolist()


def test_black_images_are_counted(tmp_path: Path) -> None:
    for name, colour in (("a", (0, 0, 0)), ("b", (0, 0, 1)), ("c", RED)):
        Image.new("RGB", (3, 3), colour).save(tmp_path / f"{name}.png")
    assert count_black(image_files(tmp_path)) == 1
