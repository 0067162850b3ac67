"""Analyses with the judge and the features of the bundled world, at a scale that tests the code and shows no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import maskunet as mu
from maskunet.analysis import AnalysisSettings, analyze, bundled_reference, embedding, random_masks
from maskunet.attaching import attachment_of
from maskunet.errors import DataError

SETTINGS = AnalysisSettings(num_inference_steps=2, count=6, mask_seeds=1, rates=(0.2, 0.9))


@pytest.fixture
def bundled() -> Any:
    pipe = mu.zoo.load("shapes")
    mu.attach(pipe, "shapes-masker")
    return pipe


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_masks, "_REFERENCE", 24)
    monkeypatch.setattr(embedding, "_REFERENCE", 24)
    monkeypatch.setattr(bundled_reference, "_RESAMPLES", 5)


def measures(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    names = dict.fromkeys(r["measure"] for r in rows)
    return {name: [r["value"] for r in rows if r["measure"] == name] for name in names}


def test_random_is_judged(bundled: Any, tmp_path: Path) -> None:
    analysis = analyze("random", bundled, SETTINGS)
    shares = measures(analysis.rows)
    base, *right = shares["right images"]
    # Every change of a verdict is a fixed or a broken image.
    gains = [f - b for f, b in zip(shares["fixed images"][1:], shares["broken images"][1:], strict=True)]
    assert shares["right minus base"][1:] == pytest.approx(gains, abs=1e-3)
    assert [r - base for r in right] == pytest.approx(gains, abs=1e-3)
    fid = shares["FID"]
    assert shares["FID minus base"] == pytest.approx([value - fid[0] for value in fid[1:]], rel=1e-2, abs=0.05)
    assert analysis.settings["model"] == "bundled model"
    assert "By drop ratio: 20 %: " in analysis.answer
    with Image.open(analysis.save(tmp_path)[0]) as image:
        assert image.width > 1000


def test_emergence_is_judged(bundled: Any) -> None:
    analysis = analyze("emergence", bundled, SETTINGS)
    shares = measures(analysis.rows)
    assert len(shares["right predictions"]) == 2 * 2
    assert "right: masked minus base" in shares
    # A prediction's distance to the final image is relative to that of the first step.
    assert shares["layout: distance to the final image"][0] == 1
    assert shares["change of the final image"][0] > 0
    assert "Halfway through the steps" in analysis.answer
    analysis.draw()


def test_samples_beside_real_images(bundled: Any, tmp_path: Path) -> None:
    analysis = analyze("samples", bundled, SETTINGS)
    shares = measures(analysis.rows)
    distances = dict(zip(("base", "masked", "held out"), shares["Frechet distance to real images"], strict=True))
    assert shares["masked minus base"] == pytest.approx([distances["masked"] - distances["base"]], abs=0.01)
    assert len(shares["first axis"]) == len(shares["second axis"]) == 18 + 6 + 6
    assert attachment_of(bundled) is not None
    analysis.draw()

    for i in range(6):
        Image.new("RGB", (70, 64), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    settings = AnalysisSettings(num_inference_steps=1, count=3, reference=tmp_path)
    assert analyze("samples", bundled, settings).settings["real_images"] == 6
    (tmp_path / "5.png").unlink()
    with pytest.raises(DataError, match="at least 6 real"):
        analyze("samples", bundled, settings)


def test_the_gap_of_equal_sets_is_zero() -> None:
    real, first = (torch.randn(30, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    same = bundled_reference.frechet_gap(first, first, real)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    farther = bundled_reference.frechet_gap(first, first + 3, real)
    assert farther.low > 0
