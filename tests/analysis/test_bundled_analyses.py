"""Analyses that the bundled world's judge and features take part in, at a scale that shows the machinery and no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import maskunet as mu
from maskunet.analysis import AnalysisSettings, analyze, embedding, random_masks
from maskunet.analysis import bundled_reference as distances
from maskunet.attaching.attachment import attachment_of
from maskunet.errors import DataError

SETTINGS = AnalysisSettings(num_inference_steps=2, count=6, mask_seeds=1, rates=(0.2, 0.9))


@pytest.fixture
def bundled() -> Any:
    pipe = mu.zoo.load("shapes")
    mu.attach(pipe, mu.load(mu.zoo.path("shapes-masker"), pipe))
    return pipe


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_masks, "_REFERENCE", 24)
    monkeypatch.setattr(embedding, "_REFERENCE", 24)
    monkeypatch.setattr(distances, "_RESAMPLES", 5)


def measures(rows: list[dict[str, Any]]) -> set[str]:
    return {r["measure"] for r in rows}


def test_random_is_judged(bundled: Any, tmp_path: Path) -> None:
    found = analyze("random", bundled, SETTINGS)
    assert {"right pictures", "mended pictures", "spoilt pictures", "right minus base", "FID minus base"} <= measures(
        found.rows
    )
    assert found.settings["model"] == "bundled model"
    with Image.open(found.save(tmp_path)[0]) as picture:
        assert picture.width > 1000


def test_emergence_is_judged(bundled: Any) -> None:
    found = analyze("emergence", bundled, SETTINGS)
    assert {"right predictions", "right: masked minus base", "change of the final picture"} <= measures(found.rows)
    assert "for good" in found.answer
    found.draw()


def test_samples_beside_real_pictures(bundled: Any, tmp_path: Path) -> None:
    found = analyze("samples", bundled, SETTINGS)
    by_side = {r["side"]: r["value"] for r in found.rows if r["measure"] == "Frechet distance to real pictures"}
    assert set(by_side) == {"base", "masked", "real, held apart"}
    assert sum(r["measure"] == "first axis" for r in found.rows) == 18 + 6 + 6
    assert attachment_of(bundled) is not None
    found.draw()

    for i in range(6):
        Image.new("RGB", (70, 64), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    own = AnalysisSettings(num_inference_steps=1, count=3, reference=tmp_path)
    assert analyze("samples", bundled, own).settings["real_pictures"] == 6
    (tmp_path / "5.png").unlink()
    with pytest.raises(DataError, match="at least 6 real"):
        analyze("samples", bundled, own)


def test_a_gap_of_equal_sets_is_nothing() -> None:
    real, first = (torch.randn(30, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    same = distances.frechet_gap(first, first, real)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    farther = distances.frechet_gap(first, first + 3, real)
    assert farther.low > 0
