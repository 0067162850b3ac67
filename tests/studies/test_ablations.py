"""The ablations in kind, at a scale that shows the machinery and no result, and the figures of both tables."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from benchmarks.studies import ablations, world
from benchmarks.studies.ablations import REFERENCE, VARIANTS, AblationConfig, reproduce_ablations
from benchmarks.studies.plots import plot_ablations, plot_table1
from benchmarks.studies.report import ablations_markdown
from PIL import Image

from maskunet.errors import DataError
from maskunet.training import TrainConfig

CONFIG = AblationConfig(
    seeds=1, steps=2, train_samples=6, prompts=6, reference_pictures=64, snapshots=2, num_inference_steps=1
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "HELD_OUT", 4)
        patch.setattr(world, "DENSITY_PROMPTS", 2)
        patch.setattr(world, "TrainConfig", partial(TrainConfig, train_batch_size=2))
        folder = tmp_path_factory.mktemp("ablations")
        first = reproduce_ablations(folder, CONFIG)

        def never(*args: object, **options: object) -> None:
            raise AssertionError("a finished cell was made again")

        patch.setattr(world, "train", never)
        patch.setattr(world.World, "measure", never)
        assert reproduce_ablations(folder, CONFIG) == first
    return first


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without timestep"):
        reproduce_ablations(tmp_path, CONFIG, variants=["without sampel"])


def test_variants_differ_in_what_their_name_says(result: dict) -> None:  # type: ignore[type-arg]
    cells = result["cells"]
    assert set(cells) == {"base", *VARIANTS}
    assert all(len(made) == CONFIG.seeds for made in cells.values())
    count = {name: made[0]["parameters"] for name, made in cells.items() if name != "base"}
    assert count["without timestep"] < count[REFERENCE] == count["without sample"] < count["decoder attention + conv"]
    assert count["decoder attention + conv"] < count["all layers"]


def test_a_dear_row_has_fewer_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def finished(path: Path, run: object) -> dict[str, object]:
        asked.append(path.stem)
        return {"art_gain": 0.0, "fid": {"clip": 1.0}, "curve": []}

    for name in ("load_base", "World", "ArtRuns"):
        monkeypatch.setattr(ablations, name, lambda *_: None)
    monkeypatch.setattr(ablations, "cell", finished)
    cells = reproduce_ablations(tmp_path, replace(CONFIG, seeds=3), variants=["all layers"])["cells"]
    assert {name: len(made) for name, made in cells.items()} == {"base": 3, REFERENCE: 3, "all layers": 1}
    assert "all-layers-0" in asked
    assert "all-layers-1" not in asked


def test_snapshots_follow_training(result: dict) -> None:  # type: ignore[type-arg]
    shots = result["snapshots"]
    assert [s["step"] for s in shots] == [0, 1, 2]
    base, last = result["cells"]["base"][0], result["cells"][REFERENCE][0]
    assert shots[0]["fid"] == base["fid"]
    assert shots[0]["density"] is None
    assert shots[-1]["fid"] == last["fid"]
    assert shots[-1]["density"] == last["density"]
    text = ablations_markdown(result)
    assert all(f"| {name} |" in text for name in VARIANTS)
    assert "| 2 |" in text
    assert "22.30" in text


def test_figures_are_written_and_repeat(result: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    written = plot_ablations(result, tmp_path / "a")
    assert [p.name for p in written] == [
        f"ablations_{name}.{suffix}" for name in ("variants", "training") for suffix in ("png", "svg")
    ]
    again = plot_ablations(json.loads(json.dumps(result)), tmp_path / "b")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]
    with Image.open(written[0]) as picture:
        assert picture.width > 1000
    assert not list(tmp_path.rglob("*.part"))


def test_figures_of_table_1(tmp_path: Path) -> None:
    def made(fid: float, **own: float) -> dict[str, object]:
        return {"fid": {"clip": fid}, "accuracy": {"overall": 0.5}, **own}

    config = {"validation_prompts": 12, "prompts": 12, "pictures": 1, "seeds": 2}
    cells = {name: [made(2.0 + i), made(2.5 + i)] for i, name in enumerate(("base", "masks", "LoRA"))}
    rates = {name: {"0.001": made(3.0, art_gain=0.1), "0.01": made(9.0, art_gain=0.2)} for name in ("masks", "LoRA")}
    written = plot_table1({"config": config, "cells": cells, "rates": rates}, tmp_path)
    assert [p.stem for p in written] == ["table1_rates", "table1_rates", "table1_differences", "table1_differences"]
    assert all(p.stat().st_size > 5000 for p in written)
