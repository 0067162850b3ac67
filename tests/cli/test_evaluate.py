"""`maskunet evaluate`: a model or a folder, resumed, with a table and a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(draw([training_scene(i, 3) for i in range(12)])):
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def test_model_against_a_folder(run: Run, reference: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(["a red circle", "two rings", "a star", "a heart", "a cross"]))
    words = ["evaluate", "--model", "shapes", "--prompts-file", "prompts.txt", "--reference", reference, "--steps", 2]
    code, out, err = run(*words, "--device", "cpu", "--output", "out", "--masker", "shapes-masker")
    assert code == 0, err
    assert "5 images made" in out
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (values,) = record["metrics"].values()
    assert values["n"] == 5
    assert values["n_reference"] == 12
    assert values["fid"] > 0
    assert -1 <= values["clip_score"] <= 1
    assert record["settings"]["num_inference_steps"] == 2
    code, out, err = run(*words, "--device", "cpu", "--output", "out", "--masker", "shapes-masker")
    assert "0 images made" in out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"] == record["metrics"]
    code, out, err = run("evaluate", "--images", "out/images", "--features", "shapes", "--resolution", 64)
    assert code == 0, err
    assert "clip_score" in out
    assert "fid" not in out


def save_images(folder: Path, count: int, prompt: str = "a red circle") -> None:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (64, 64), (i, 50, 90)).save(folder / f"{i:05d}.png")
        (folder / f"{i:05d}.json").write_text(json.dumps({"prompt": prompt}))


def test_fewer_prompts_than_images_are_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path / "images", 4)
    (tmp_path / "prompts.txt").write_text("a red circle\na star\n")
    words = [
        "evaluate",
        "--images",
        "images",
        "--prompts-file",
        "prompts.txt",
        "--features",
        "shapes",
        "--device",
        "cpu",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("maskunet.evaluation.measurement.load_features", lambda *_: pytest.fail("a network was loaded"))
        code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "expected one prompt for each of 4 images, got 2" in err
    assert not (tmp_path / "evaluation").exists()
    code, out, err = run(*words, "--limit", 2)
    assert code == 0, err
    record = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert record["metrics"]["shapes"]["n"] == 2
    code, out, err = run("evaluate", "--images", "images", "--limit", 3, "--features", "shapes", "--output", "three")
    assert code == 0, err
    assert json.loads((tmp_path / "three" / "metrics.json").read_text())["metrics"]["shapes"]["n"] == 3


@pytest.mark.parametrize("text", ["[1]", "{", "{}", '{"prompt": 3}'])
def test_a_bad_record_is_one_line(run: Run, tmp_path: Path, text: str) -> None:
    save_images(tmp_path / "images", 2)
    (tmp_path / "images" / "00001.json").write_text(text)
    code, out, err = run("evaluate", "--images", "images", "--features", "shapes")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "00001.json" in err
    assert not (tmp_path / "evaluation").exists()


def test_black_images_are_said_on_stderr_and_in_the_report(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_images(tmp_path / "images", 2)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "00001.png")
    code, out, err = run("evaluate", "--images", "images", "--features", "shapes")
    assert code == 0, err
    assert "1 of 2 images of images are black" in out
    assert "1 of 2 images of images are black" in caplog.text  # the log goes to stderr
    assert "1 of 2 images of images are black" in (tmp_path / "evaluation" / "metrics.md").read_text()


def test_coco_protocol_takes_the_annotations(run: Run, tmp_path: Path) -> None:
    entries = [{"id": i, "image_id": i, "caption": "a red circle"} for i in range(5000)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": entries}))
    words = ["evaluate", "--model", "shapes", "--protocol", "coco2017-5k", "--annotations", "captions.json"]
    code, out, err = run(*words, "--limit", 2, "--steps", 2, "--device", "cpu", "--output", "out")
    assert code == 0, err
    assert "2 images made" in out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["resolution"] == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model to generate with, or --images"),
        (["--model", "shapes", "--protocol", "coco"], "coco2014-30k"),
        (["--model", "shapes", "--protocol", "coco2017-5k"], "captions_val2017.json"),
        (["--model", "shapes"], "at least one prompt"),
        (["--images", "nowhere"], "expected --features"),
        (["--images", "nowhere", "--features", "shapes"], "nowhere"),
        (["--images", "nowhere", "--features", "vgg"], "clip:SOURCE"),
    ],
)
def test_mistakes_are_one_line(run: Run, words: list[str], message: str) -> None:
    code, _, err = run("evaluate", *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
