"""`measure_images`: generate and measure, measure a folder, wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import maskunet as mu
from maskunet.errors import DataError, SettingError
from maskunet.evaluation import measure_images
from maskunet.images import save_png, to_pil
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene

PROMPTS = ["a red circle", "two rings", "a star", "a heart", "a cross"]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(to_pil(draw([training_scene(i, 3) for i in range(12)]))):
        save_png(image, folder / f"{i}.png")
    return folder


def test_a_model_against_real_images(reference: Path, tmp_path: Path) -> None:
    pipe = mu.zoo.load("shapes")
    counts: list[int] = []
    options: dict[str, Any] = {
        "pipe": pipe,
        "prompts": PROMPTS,
        "reference": reference,
        "num_inference_steps": 2,
        "settings": {"masker": None},
        "output_dir": tmp_path / "out",
        "progress": False,
        "on_generated": lambda folder, count: counts.append(count),
    }
    report = measure_images(tmp_path / "images", **options)
    ((name, values),) = report.metrics.items()
    assert name == "shapes"
    assert (values["n"], values["n_reference"]) == (5, 12)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record == json.loads(json.dumps(report.to_dict()))
    assert (record["resolution"], record["settings"]["guidance_scale"]) == (64, 4.0)
    assert (tmp_path / "out" / "metrics.md").read_text() == report.to_markdown() + "\n"
    again = measure_images(tmp_path / "images", **options)
    assert counts == [5, 0]
    assert again.metrics == report.metrics
    alone = measure_images(tmp_path / "images", "shapes", resolution=64, progress=False)
    assert alone.metrics["shapes"] == {"n": 5, "clip_score": pytest.approx(values["clip_score"])}
    assert alone.to_markdown().splitlines()[0] == "| features | n | clip_score |"
    assert measure_images(reference, ["shapes"], reference=reference, resolution=64, progress=False).metrics["shapes"][
        "fid"
    ] == pytest.approx(0, abs=1e-3)
    with pytest.raises(DataError, match="num_inference_steps differ"):
        measure_images(tmp_path / "images", **options | {"num_inference_steps": 3})


def test_another_process_measures_nothing(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    options: dict[str, Any] = {"pipe": pipe, "prompts": ["a", "b", "c"], "num_inference_steps": 1, "progress": False}
    report = measure_images(tmp_path / "images", "clip:nowhere", output_dir=tmp_path / "out", **options)
    assert (dict(report.metrics), report.to_markdown()) == ({}, "")
    assert [f.name for f in (tmp_path / "images").glob("*.png")] == ["000001.png"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected features"),
        ({"features": 3}, "expected names of feature spaces"),
        ({"features": []}, "expected names of feature spaces"),
        ({"features": "vgg"}, "clip:SOURCE"),
        ({"features": "shapes", "resolution": 4}, "resolution to be an integer >= 8"),
        ({"features": "shapes", "batch_size": 0}, "batch_size"),
        ({"features": "shapes"}, "folder with images"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure_images(tmp_path / "nowhere", output_dir=tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_needs_prompts(pipe: Any, tmp_path: Path) -> None:
    for prompts in (None, [], "a star"):
        with pytest.raises(SettingError, match="at least one prompt"):
            measure_images(tmp_path, "shapes", pipe=pipe, prompts=prompts)
    assert torch.is_grad_enabled()
