"""`measure_images`: generate and measure, measure a folder, wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.errors import DataError, SettingError
from maskunet.evaluation import measure_images
from maskunet.evaluation.features import Features
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


def test_exactly_the_images_of_the_prompts_are_measured(pipe: Any, reference: Path, tmp_path: Path) -> None:
    """A larger folder, images that are left over, and records without images do not change the figures."""
    options: dict[str, Any] = {"pipe": pipe, "num_inference_steps": 2, "features": "shapes", "progress": False}
    alone = measure_images(tmp_path / "alone", prompts=PROMPTS[:2], **options)
    folder = tmp_path / "larger"
    measure_images(folder, prompts=PROMPTS, **options)
    save_png(to_pil(torch.rand(1, 3, 16, 16))[0], folder / "left_over.png")
    (folder / "sub").mkdir()
    save_png(to_pil(torch.rand(1, 3, 16, 16))[0], folder / "sub" / "000000.png")
    for limit, prompts in ((None, PROMPTS[:2]), (2, PROMPTS)):
        assert measure_images(folder, prompts=prompts, limit=limit, **options).metrics == alone.metrics
    (folder / "000001.png").unlink()  # its record is stale
    again: list[int] = []
    report = measure_images(folder, prompts=PROMPTS[:2], **options, on_generated=lambda _, count: again.append(count))
    assert again == [1]
    assert report.metrics == alone.metrics


def test_without_a_model_the_images_directly_in_the_folder_are_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = mu.sampling.GeneratedImages(images, ["a", "b", "c"], [0, 1, 2])
    result.save(tmp_path / "found")
    alone = measure_images(tmp_path / "found", "shapes", progress=False)
    result.save(tmp_path / "found" / "base")  # as beside a search's images
    assert measure_images(tmp_path / "found", "shapes", progress=False).metrics == alone.metrics
    assert "3 in its subfolders do not: base" in caplog.text
    limited = measure_images(tmp_path / "found", "shapes", limit=2, progress=False)
    result.save(tmp_path / "classes" / "first")
    result.save(tmp_path / "classes" / "second")
    assert measure_images(tmp_path / "classes", "shapes", progress=False).metrics["shapes"]["n"] == 6
    mu.sampling.GeneratedImages(images[:2], ["a", "b"], [0, 1]).save(tmp_path / "two")
    assert limited.metrics == measure_images(tmp_path / "two", "shapes", progress=False).metrics
    (tmp_path / "classes" / "summary.json").write_text("{}")
    with pytest.raises(DataError, match=r"one side, .* is a benchmark's output"):
        measure_images(tmp_path / "classes", "shapes")


def refuse_to_load(*_: Any) -> Any:
    pytest.fail("a network was loaded")


@pytest.mark.parametrize("count", [2, 4])
def test_other_prompts_than_images_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("maskunet.evaluation.measurement.load_features", refuse_to_load)
    mu.sampling.GeneratedImages(torch.rand(3, 3, 16, 16), ["a", "b", "c"], [0, 1, 2]).save(tmp_path)
    with pytest.raises(DataError, match=f"one prompt for each of 3 images, got {count}"):
        measure_images(tmp_path, "clip:somewhere", prompts=["a"] * count)
    with pytest.raises(SettingError, match="a list of at least one prompt"):
        measure_images(tmp_path, "clip:somewhere", prompts="abc")


@pytest.mark.parametrize("few", ["images", "reference"])
def test_too_few_images_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: str
) -> None:
    monkeypatch.setattr("maskunet.evaluation.measurement.load_features", refuse_to_load)
    for name in ("images", "reference"):
        count = 3 if name == few else 5
        mu.sampling.GeneratedImages(torch.rand(count, 3, 16, 16), ["a"] * count, [0] * count).save(tmp_path / name)
    with pytest.raises(DataError, match="at least 4 images on each side"):
        measure_images(tmp_path / "images", "clip:somewhere", reference=tmp_path / "reference")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "could not read it"),
        ("\udcff", "could not read it"),
        ('["a"]', "a JSON object, got list"),
        ("null", "a JSON object, got NoneType"),
        ('{"seed": 1}', "a text 'prompt' in .*, got None"),
        ('{"prompt": ["a"]}', "a text 'prompt' in .*, got .'a'."),
        (None, "1 of 3 have none, such as .*00001.png"),
    ],
)
def test_bad_records_beside_images_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    mu.sampling.GeneratedImages(torch.rand(3, 3, 16, 16), ["a", "b", "c"], [0, 1, 2]).save(tmp_path)
    record = tmp_path / "00001.json"
    record.unlink()
    if text is not None:
        record.write_bytes(text.encode("utf-8", "surrogateescape"))
    with monkeypatch.context() as patch:
        patch.setattr("maskunet.evaluation.measurement.load_features", refuse_to_load)
        with pytest.raises(DataError, match=message) as error:
            measure_images(tmp_path, "clip:somewhere")
        assert "\n" not in str(error.value)
    # Prompts of the caller replace the records, and a space without texts needs none.
    report = measure_images(tmp_path, "shapes", prompts=["a", "b", "c"], progress=False)
    assert "clip_score" in report.metrics["shapes"]
    assert measure_images(tmp_path, Plain("plain", "cpu"), progress=False).metrics == {"Plain": {"n": 3}}


class Plain(Features):
    """Mean colours; NaN for a white image."""

    def __call__(self, images: Tensor) -> Tensor:
        values = images.mean((2, 3))
        values[images.amin((1, 2, 3)) == 1] = float("nan")
        return values


def test_features_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 16, 16) * 0.9
    mu.sampling.GeneratedImages(images, ["a"] * 5, [0] * 5).save(tmp_path / "good")
    images[2] = 1
    mu.sampling.GeneratedImages(images, ["a"] * 5, [0] * 5).save(tmp_path / "bad")
    space = Plain("plain", "cpu")
    for first, second, name in (("bad", "good", "measured images"), ("good", "bad", "reference")):
        with pytest.raises(
            DataError, match=f"finite features of the {name}, got .* for 1 of 5, first for .*00002.png"
        ):
            measure_images(tmp_path / first, space, reference=tmp_path / second, progress=False)
    good = measure_images(tmp_path / "good", space, reference=tmp_path / "good", progress=False)
    assert good.metrics["Plain"]["fid"] == pytest.approx(0, abs=1e-6)


def test_black_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = torch.rand(3, 3, 16, 16)
    images[1] = 0
    mu.sampling.GeneratedImages(images, ["a", "b", "c"], [0, 1, 2]).save(tmp_path / "images")
    report = measure_images(tmp_path / "images", "shapes", output_dir=tmp_path, progress=False)
    assert report.settings["black_images"] == 1
    (note,) = caplog.messages
    assert note.startswith(f"1 of 3 images of {tmp_path / 'images'} are black")
    assert report.to_markdown().endswith(note)
    assert json.loads((tmp_path / "metrics.json").read_text())["black_images"] == 1


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
