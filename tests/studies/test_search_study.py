"""The comparison at equal compute, at a scale that shows the machinery and no result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.studies.amortised import AmortisedConfig, amortised_masker, shortened
from benchmarks.studies.search import METHODS, SearchStudy, fingerprint, masks, run_study
from benchmarks.studies.search_report import plot_search, search_markdown
from PIL import Image

from maskunet.errors import RewardError

STUDY = SearchStudy(1, 6, "val", num_inference_steps=2, batch_size=3, reference_pictures=64)


def test_cells_compute_and_report(tmp_path: Path) -> None:
    methods = {"plain": METHODS["plain"], "best of 6": METHODS["best of 6"], "masks": masks(iterations=1)}
    said: list[str] = []
    config = replace(shortened(AmortisedConfig.of("shapes"), 0.02), train_samples=8, steps=1)
    methods["amortised masker"] = amortised_masker(tmp_path / "work", config, rate=1e-3, say=said.append)
    assert "1 steps at 0.001" in said.pop()
    result = run_study(tmp_path / "work", STUDY, methods, say=said.append)
    cells = {name: made[0] for name, made in result["cells"].items()}
    assert len(said) == 4
    again_trained = amortised_masker(tmp_path / "work", config, rate=1e-3, say=said.append)
    assert fingerprint(again_trained) == fingerprint(methods["amortised masker"])
    assert len(said) == 4  # trained once
    # Plain sampling is two guided calls and a decoding; best of 6 is six of them and rewards.
    assert 2 < cells["plain"]["forwards"] < 8
    assert cells["best of 6"]["forwards"] == pytest.approx(6 * cells["plain"]["forwards"], rel=0.35)
    assert cells["masks"]["forwards"] > 2 * cells["plain"]["forwards"]
    assert cells["best of 6"]["reward"] > cells["plain"]["reward"]
    text = search_markdown(result)
    assert "GiB" not in text
    measured = run_study(tmp_path / "work", STUDY, {"plain": METHODS["plain"]}, memory=True)
    assert 0.1 < measured["memory"]["plain"] < 8
    assert f"| {measured['memory']['plain']:.2f} |" in search_markdown(measured)
    assert all(f"| {name} |" in text for name in methods)
    written = plot_search(result, tmp_path)
    with Image.open(written[0]) as picture:
        assert picture.width > 1000

    other = {"masks": masks(iterations=0)}
    again = run_study(tmp_path / "work", STUDY, other, say=said.append)
    assert again["cells"]["masks"][0]["forwards"] < cells["masks"]["forwards"]

    def never(*args: object, **options: object) -> None:
        raise AssertionError("a finished cell was made again")

    never.__name__ = "_plain"
    assert run_study(tmp_path / "work", STUDY, {"plain": never})["cells"]["plain"] == result["cells"]["plain"]


def test_only_bundled_rewards_are_compared(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"bundled reward .*'image-reward'"):
        run_study(tmp_path / "work", replace(STUDY, reward="image-reward"))
