"""Masks and LoRA trained by the reward, in miniature: it shows the machinery and no result."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.studies import amortised, world
from benchmarks.studies.amortised import AmortisedConfig, run_amortised
from benchmarks.studies.amortised_report import amortised_markdown, plot_amortised
from PIL import Image

from maskunet.errors import RewardError

CONFIG = AmortisedConfig(
    seeds=1,
    steps=1,
    rates={"mask": (1.0,), "lora": (1e-3,)},
    train_samples=8,
    train_batch_size=2,
    reward_batch_size=2,
    prompts=6,
    reference_images=64,
    num_inference_steps=2,
    reward="shapes-matching",
)


def never(*args: object, **options: object) -> None:
    raise AssertionError("a finished cell was measured again")


def test_both_methods_train_and_finished_cells_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "DENSITY_PROMPTS", 2)
    lines: list[str] = []
    record = run_amortised(tmp_path / "work", CONFIG, log=lines.append)
    assert len(lines) == 2 + 2 + 2
    assert {name: len(cells) for name, cells in record["cells"].items()} == {"base": 1, "mask": 1, "lora": 1}
    assert set(record["validation"]["mask"]) == {"1"}
    assert record["selected"]["lora"] == 1e-3
    # Log-probabilities.
    assert all(cell["reward"] < 0 for cells in record["cells"].values() for cell in cells)
    base = record["cells"]["base"][0]
    assert all(cell["reward"] != base["reward"] for cell in record["cells"]["lora"])
    # The large rate moves logits over the threshold.
    assert record["validation"]["mask"]["1"]["reward"] != record["validation"]["base"]["reward"]
    assert record["cells"]["lora"][0]["density"] is None
    assert 0 < record["cells"]["mask"][0]["density"] <= 1
    text = amortised_markdown(record)
    assert "| lora | 0.001 |" in text
    assert "`shapes-matching`" in text
    (path,) = plot_amortised(record, tmp_path, "other")
    assert path.name == "other.png"
    with Image.open(path) as image:
        assert image.width > 1000

    monkeypatch.setattr(amortised, "train", never)
    assert run_amortised(tmp_path / "work", CONFIG)["cells"] == record["cells"]


def test_presets_differ_by_reward() -> None:
    assert AmortisedConfig.preset("shapes") == AmortisedConfig()
    config = AmortisedConfig.preset("shapes-matching", seeds=5)
    assert (config.seeds, config.reward, config.reward_weight, config.steps) == (5, "shapes-matching", 0.3, 120)


def test_other_rewards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"bundled reward .*'image-reward'"):
        run_amortised(tmp_path / "work", AmortisedConfig.preset("image-reward"))
    assert not (tmp_path / "work").exists()
