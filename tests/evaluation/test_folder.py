"""Folders of pictures: generated in shards and resumed, measured in feature spaces read from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

import maskunet as mu
from maskunet import zoo
from maskunet.errors import DataError
from maskunet.evaluation.coco import coco_captions
from maskunet.evaluation.features import load_features
from maskunet.evaluation.folder import generate_folder, image_files, measure_folder, prompts_beside, read_images
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import Scene, training_scene

PROMPTS = ["a red circle", "a blue star", "two rings", "a heart", "a green cross"]
OPTIONS: dict[str, Any] = {"settings": {"model": "tiny"}, "num_inference_steps": 2, "progress": False}


def write(folder: Path, scenes: list[Scene], style: str = "plain") -> Path:
    folder.mkdir()
    for i, (scene, picture) in enumerate(zip(scenes, draw(scenes, style), strict=True)):
        pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.png")
        (folder / f"{i:06d}.json").write_text(json.dumps({"prompt": scene.caption}))
    return folder


def read(folder: Path) -> list[bytes]:
    return [np.asarray(Image.open(f)).tobytes() for f in image_files(folder)]


def test_shards_and_resumed_runs_give_the_pictures_of_one_run(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    assert generate_folder(pipe, PROMPTS, tmp_path / "one", **OPTIONS) == 5
    counts = [generate_folder(pipe, PROMPTS, tmp_path / "two", rank=r, world=2, **OPTIONS) for r in (0, 1)]
    assert counts == [3, 2]
    whole = read(tmp_path / "one")
    assert read(tmp_path / "two") == whole
    assert prompts_beside(image_files(tmp_path / "two")) == PROMPTS
    (tmp_path / "two" / "000001.json").unlink()
    (tmp_path / "two" / "000003.png").unlink()
    assert generate_folder(pipe, PROMPTS, tmp_path / "two", **OPTIONS) == 2
    assert read(tmp_path / "two") == whole
    beside = json.loads((tmp_path / "two" / "000003.json").read_text())
    assert (beside["prompt"], beside["seed"], beside["num_inference_steps"]) == ("a heart", 3, 2)
    with pytest.raises(DataError, match=r"num_inference_steps, seed differ|seed differ|num_inference_steps differ"):
        generate_folder(pipe, PROMPTS, tmp_path / "two", **OPTIONS | {"num_inference_steps": 3})


def test_bundled_features_tell_worlds_and_captions_apart(tmp_path: Path) -> None:
    features = load_features(f"clip:{zoo.path('shapes-clip')}")
    mine = write(tmp_path / "mine", [training_scene(i, 5) for i in range(120)])
    same = write(tmp_path / "same", [training_scene(i, 6) for i in range(120)])
    art = write(tmp_path / "art", [training_scene(i, 5) for i in range(120)], "art")
    near = measure_folder(mine, same, features, resolution=64, progress=False)
    far = measure_folder(art, same, features, resolution=64, progress=False)
    assert near["n"] == near["n_reference"] == 120
    for name in ("fid", "kid", "cmmd"):
        assert near[name] < far[name], name
    assert abs(near["kid"]) < 3 * near["kid_std"] + 1e-3
    assert near["precision"] > 0.6
    assert near["recall"] > 0.6
    itself = measure_folder(mine, mine, features, resolution=64, progress=False)
    assert itself["fid"] == pytest.approx(0, abs=1e-3)
    assert itself["precision"] == itself["recall"] == 1
    shuffled = [training_scene(i + 1, 5).caption for i in range(120)]
    wrong = measure_folder(mine, None, features, resolution=64, prompts=shuffled, progress=False)
    assert near["clip_score"] > wrong["clip_score"] + 0.05
    assert "fid" not in wrong


def test_dinov2_from_a_folder_takes_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).eval().save_pretrained(tmp_path / "dino")
    BitImageProcessorPil(crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path / "dino")
    features = load_features(f"dinov2:{tmp_path / 'dino'}")
    pictures = torch.rand(3, 3, 40, 60)
    found = features(pictures)
    assert found.shape == (3, 16)
    torch.testing.assert_close(features(pictures[1:2]), found[1:2], atol=1e-5, rtol=1e-4)
    assert features.texts(["a"]) is None


def test_pictures_are_cropped_to_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    (batch,) = read_images([tmp_path / "a.png"], 8)
    assert batch.shape == (1, 3, 8, 8)
    assert batch.min() == 1


@pytest.mark.parametrize("name", ["vgg", "clip", "clip:/nowhere", "dinov2:", "inception:weights.pth"])
def test_unknown_features_are_refused(name: str) -> None:
    with pytest.raises(mu.MaskUNetError, match=r"expected (features|a model)"):
        load_features(name)


def test_unreadable_pictures_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder with pictures"):
        image_files(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        list(read_images(image_files(tmp_path), 8))


def test_coco_captions_are_one_a_picture_and_repeat(tmp_path: Path) -> None:
    entries = [{"id": i, "image_id": i // 5, "caption": f"picture {i // 5}\n, {i % 5}"} for i in range(100)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": entries}))
    found = coco_captions(path, 12)
    assert found == coco_captions(path, 12) != coco_captions(path, 12, seed=1)
    assert len({c.split(",")[0] for c in found}) == 12
    with pytest.raises(DataError, match="at least 21"):
        coco_captions(path, 21)
    path.write_text("{}")
    with pytest.raises(DataError, match="annotations"):
        coco_captions(path, 1)
