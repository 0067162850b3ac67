"""The comparison at equal compute, in miniature: it shows the machinery and no result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import search_variants
from benchmarks.studies.amortised import AmortisedConfig, amortised_masker
from benchmarks.studies.generation_methods import METHODS, fingerprint, masks
from benchmarks.studies.search import SearchStudyConfig, run_search_study
from benchmarks.studies.search_report import plot_search, search_markdown
from PIL import Image

from maskunet.errors import RewardError
from maskunet.searching import SearchConfig

CONFIG = SearchStudyConfig(1, 6, "val", num_inference_steps=2, batch_size=3, reference_images=64)
MASKER = AmortisedConfig(
    steps=1,
    train_samples=8,
    train_batch_size=2,
    reward_batch_size=2,
    num_inference_steps=2,
)


def never(*args: object, **options: object) -> torch.Tensor:
    raise AssertionError("a finished cell was measured again")


def test_cells_compute_and_report(tmp_path: Path) -> None:
    lines: list[str] = []
    masker = amortised_masker(tmp_path, MASKER, rate=1e-3, log=lines.append)
    assert "1 steps at 0.001" in lines.pop()
    methods = {
        "plain": METHODS["plain"],
        "best of 6": METHODS["best of 6"],
        "masks": masks("masks", iterations=1),
        "amortised masker": masker,
    }
    record = run_search_study(tmp_path, CONFIG, methods, log=lines.append)
    assert len(lines) == 4
    assert fingerprint(amortised_masker(tmp_path, MASKER, rate=1e-3, log=lines.append)) == fingerprint(masker)
    assert len(lines) == 4  # trained once
    cells = {name: of_method[0] for name, of_method in record["cells"].items()}
    # Plain sampling is two guided calls and a decoding; best of 6 is six of them and the rewards.
    assert 2 < cells["plain"]["forwards"] < 8
    assert cells["best of 6"]["forwards"] == pytest.approx(6 * cells["plain"]["forwards"], rel=0.35)
    assert cells["masks"]["forwards"] > 2 * cells["plain"]["forwards"]
    assert cells["best of 6"]["reward"] > cells["plain"]["reward"]
    each = cells["best of 6"]["each"]
    assert set(each["correct"]) <= {0, 1}
    assert sum(each["reward"]) / 6 == pytest.approx(cells["best of 6"]["reward"], rel=1e-3)
    text = search_markdown(record)
    assert all(f"| {name} |" in text for name in methods)
    assert "GiB" not in text
    (path,) = plot_search(record, tmp_path)
    with Image.open(path) as image:
        assert image.width > 1000

    other = run_search_study(tmp_path, CONFIG, {"masks": masks("masks", iterations=0)})
    assert other["cells"]["masks"][0]["forwards"] < cells["masks"]["forwards"]
    never.__name__ = METHODS["plain"].__name__
    assert run_search_study(tmp_path, CONFIG, {"plain": never})["cells"]["plain"] == record["cells"]["plain"]

    differences = search_variants.minus_plain(cells["best of 6"], cells["plain"])
    assert differences["reward"][0] > 0


def test_memory_is_measured_in_a_separate_process(tmp_path: Path) -> None:
    record = run_search_study(tmp_path, CONFIG, {"plain": METHODS["plain"]}, memory=True)
    assert 0.1 < record["memory"]["plain"] < 8
    assert f"| {record['memory']['plain']:.2f} |" in search_markdown(record)


def test_other_rewards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"bundled reward .*'image-reward'"):
        run_search_study(tmp_path, replace(CONFIG, reward="image-reward"))


def test_variants_change_the_preset_masks() -> None:
    config = search_variants.VARIANTS["cross-attention"].keywords["config"]
    masks_alone = SearchConfig.preset("masks", compare_base=False)
    assert replace(config, targets=masks_alone.targets) == masks_alone
    assert set(search_variants.select(["best of 6"])) == {*search_variants.REFERENCE, "best of 6"}
    assert set(search_variants.select(["lambda"])) > set(search_variants.REFERENCE)
