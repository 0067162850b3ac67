"""Images as PIL images and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskunet.errors import DataError
from maskunet.images import save_png, to_pil


def test_values_are_clamped_and_rounded() -> None:
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 100 / 255]).reshape(1, 1, 2, 3).expand(2, 3, 2, 3)
    first, second = to_pil(images)
    assert (first.mode, first.size) == ("RGB", (3, 2))
    assert np.asarray(first)[..., 0].flatten().tolist() == [0, 0, 128, 255, 255, 100]
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_a_png_reads_back_and_a_failed_write_names_the_file(tmp_path: Path) -> None:
    (image,) = to_pil(torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0)))
    save_png(image, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(image))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(DataError, match=r"b\.png"):
        save_png(image, tmp_path / "missing" / "b.png")
