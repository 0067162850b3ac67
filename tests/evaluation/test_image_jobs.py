"""Images that are generated once, by several processes, and resumed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from maskunet.errors import DataError
from maskunet.evaluation.image_jobs import ImageJob, generate_missing, wait_for_images


def grey(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), seed / 255) for seed in seeds])


def jobs(folder: Path, count: int = 5) -> list[ImageJob]:
    return [
        ImageJob(folder / "a" / f"{i}.png", folder / "b" / f"{i}.json", f"prompt {i}", 10 * i) for i in range(count)
    ]


def test_every_image_is_generated_once(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def side(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        calls.append(list(prompts))
        return grey(prompts, seeds)

    options = {"settings": {"steps": 2}, "batch_size": 2, "progress": False}
    assert generate_missing(side, jobs(tmp_path), rank=1, world=2, **options) == 2  # type: ignore[arg-type]
    assert generate_missing(side, jobs(tmp_path), **options) == 3  # type: ignore[arg-type]
    assert generate_missing(side, jobs(tmp_path), **options) == 0  # type: ignore[arg-type]
    assert calls == [["prompt 1", "prompt 3"], ["prompt 0", "prompt 2"], ["prompt 4"]]
    assert [Image.open(s.file).getpixel((0, 0))[0] for s in jobs(tmp_path)] == [0, 10, 20, 30, 40]  # type: ignore[index]
    assert json.loads((tmp_path / "b" / "3.json").read_text()) == {"prompt": "prompt 3", "seed": 30, "steps": 2}
    assert not list(tmp_path.rglob("*.part"))


def test_images_of_other_settings_are_refused(tmp_path: Path) -> None:
    generate_missing(grey, jobs(tmp_path), settings={"steps": 2}, progress=False)
    with pytest.raises(DataError, match=r"steps differ in 0\.json; choose another folder"):
        generate_missing(grey, jobs(tmp_path), settings={"steps": 3}, progress=False)
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(DataError, match="steps differ"):
        generate_missing(grey, jobs(tmp_path), settings={"steps": 3}, progress=False)
    (tmp_path / "b" / "0.json").write_text("{")
    with pytest.raises(DataError, match="could not read it"):
        generate_missing(grey, jobs(tmp_path), settings={"steps": 2}, progress=False)
    (tmp_path / "b" / "0.json").write_text("[]")
    with pytest.raises(DataError, match="a JSON object, got list"):
        generate_missing(grey, jobs(tmp_path), settings={"steps": 2}, progress=False)
    with pytest.raises(DataError, match="batch_size"):
        generate_missing(grey, jobs(tmp_path), settings={}, batch_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can be written"):
        generate_missing(grey, jobs(tmp_path / "file"), settings={}, progress=False)


def test_waiting_for_another_process(tmp_path: Path) -> None:
    def generate_later() -> None:
        time.sleep(0.3)
        generate_missing(grey, jobs(tmp_path), settings={}, progress=False)

    thread = threading.Thread(target=generate_later)
    thread.start()
    wait_for_images(jobs(tmp_path))
    thread.join()
    assert all(job.is_done for job in jobs(tmp_path))
    with pytest.raises(DataError, match="expected 6 images, 5 came and no more"):
        wait_for_images(jobs(tmp_path, 6), patience_s=0.0)
