"""Generated images and their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskunet.errors import DataError
from maskunet.sampling.result import GeneratedImages
from maskunet.version import __version__


@pytest.fixture
def generated() -> GeneratedImages:
    tensor = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return GeneratedImages(tensor, ["a", "b"], [3, 4], {"num_inference_steps": 5})


def test_images_and_records_are_saved(generated: GeneratedImages, tmp_path: Path) -> None:
    folder = generated.save(tmp_path / "new" / "folder", first=7)
    assert sorted(p.name for p in folder.iterdir()) == ["00007.json", "00007.png", "00008.json", "00008.png"]
    for i in range(len(generated)):
        pixels = torch.from_numpy(np.array(Image.open(folder / f"0000{7 + i}.png"))).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels, generated.tensor[i], atol=0.5 / 255 + 1e-6, rtol=0)
    record = json.loads((folder / "00008.json").read_text())
    assert record == {"maskunet": __version__, "prompt": "b", "seed": 4, "num_inference_steps": 5}


def test_an_old_record_never_lies_beside_a_new_image(
    generated: GeneratedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated.save(tmp_path)
    old = (tmp_path / "00000.png").read_bytes()

    def fail(*_: object) -> None:
        raise DataError("no space left")

    monkeypatch.setattr("maskunet.sampling.result.save_png", fail)
    with pytest.raises(DataError, match="no space left"):
        generated.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.png", "00001.png"]
    assert (tmp_path / "00000.png").read_bytes() == old


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(generated: GeneratedImages, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "00000.json").mkdir(parents=True)
    for folder in ("file", "folder"):
        with pytest.raises(DataError, match=folder) as error:
            generated.save(tmp_path / folder)
        assert "\n" not in str(error.value)
