"""The result of a search and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.errors import CheckpointError, DataError, UnscoredError
from maskunet.searching import SearchConfig, SearchResult

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig.preset("masks", num_inference_steps=3, iterations=1, guidance_scale=4.0, initial_logit=1.0)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.fixture
def result(pipe: Any) -> SearchResult:
    return mu.search(pipe, PROMPTS, redness, CONFIG, seeds=SEEDS, progress=False)


def test_images_masks_and_records_are_saved(result: SearchResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "result", first=3)
    assert sorted(p.name for p in folder.iterdir()) == [
        "00003.json",
        "00003.png",
        "00004.json",
        "00004.png",
        "base",
        "masks",
    ]
    assert sorted(p.name for p in (folder / "base").iterdir()) == ["00003.png", "00004.png"]
    record = json.loads((folder / "00004.json").read_text())
    assert (record["prompt"], record["seed"], record["start_seed"]) == (PROMPTS[1], SEEDS[1], SEEDS[1])
    assert record["reward"] == pytest.approx(float(result.rewards[1]))
    assert record["density"] == pytest.approx(float(result.masks.density()[:, 1].mean()))
    assert [(h["step"], h["iteration"]) for h in record["history"]] == [(s, k) for s in range(3) for k in range(2)]
    assert SearchConfig(**record["config"]) == CONFIG
    size = (folder / "masks" / "00004" / "masker.safetensors").stat().st_size
    assert size < 3 * result.masks.network.weights / 8 + 10_000  # one bit per weight and step


def test_saved_masks_are_those_of_their_sample(result: SearchResult, pipe: Any, tmp_path: Path) -> None:
    result.save(tmp_path)
    loaded = mu.load(tmp_path / "masks" / "00001", pipe.unet)
    expected = result.masks.select(1)
    assert all(torch.equal(bits, loaded.tensors()[name]) for name, bits in expected.tensors().items())


@pytest.mark.parametrize("target", ["maskunet.checkpoint.files.save_file", "maskunet.images.save_whole"])
def test_an_old_record_never_lies_beside_a_new_image(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    result.save(tmp_path)
    assert (tmp_path / "00000.json").is_file()

    def fail(path: Any, *_: Any, **__: Any) -> None:
        raise (OSError if "checkpoint" in target else DataError)("no space left")

    monkeypatch.setattr(target, fail)
    with pytest.raises((CheckpointError, DataError), match="no space left"):
        result.save(tmp_path, overwrite=True)
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.rglob("*.part"))


def test_an_earlier_result_is_not_replaced(result: SearchResult, tmp_path: Path) -> None:
    result.save(tmp_path, first=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for first in (0, 1, 2):
        with pytest.raises(DataError, match=r"with 0000[12]\.json; choose another folder, or pass overwrite=True"):
            result.save(tmp_path, first=first)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    result.save(tmp_path, first=3)
    result.save(tmp_path, first=1, overwrite=True)
    (tmp_path / "00001.json").unlink()  # an image without its record was interrupted
    (tmp_path / "00002.json").unlink()
    result.save(tmp_path, first=1)
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_unscored_images_are_returned_and_saved(pipe: Any, result: SearchResult, tmp_path: Path) -> None:
    calls = 0
    config = SearchConfig.preset("masks", **{**vars(CONFIG), "keep": "last"})

    def fail(images: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        return redness(images, prompts) * (float("nan") if calls > 4 else 1)

    with pytest.raises(UnscoredError, match=r"finished and could not be scored: .*'fail'.*finite") as error:
        mu.search(pipe, PROMPTS, fail, config, seeds=SEEDS, progress=False)
    unscored = error.value.result
    expected = mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False)
    assert torch.equal(unscored.tensor, expected.tensor)
    assert torch.equal(unscored.base_rewards, expected.base_rewards)
    assert bool(unscored.rewards.isnan().all())
    unscored.save(tmp_path)
    assert json.loads((tmp_path / "00001.json").read_text())["reward"] is None
    assert (tmp_path / "masks" / "00001").is_dir()


def test_without_base_there_are_no_base_images(pipe: Any, tmp_path: Path) -> None:
    config = SearchConfig.preset("masks", **{**vars(CONFIG), "iterations": 0, "compare_base": False})
    result = mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False)
    assert (result.base, result.base_rewards, result.base_images) == (None, None, [])
    folder = result.save(tmp_path)
    assert not (folder / "base").exists()
    assert json.loads((folder / "00000.json").read_text())["base_reward"] is None
