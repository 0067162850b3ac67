"""Masks and LoRA trained by the reward, at a scale that shows the machinery and no result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.studies import amortised, world
from benchmarks.studies.amortised import AmortisedConfig, reproduce_amortised
from benchmarks.studies.amortised_report import amortised_markdown, plot_amortised
from PIL import Image

from maskunet.errors import RewardError

CONFIG = AmortisedConfig(
    seeds=2,
    steps=2,
    rates={"mask": (1e-3, 1.0), "lora": (1e-3,)},
    train_samples=8,
    train_batch_size=2,
    reward_batch_size=2,
    prompts=6,
    reference_pictures=64,
    num_inference_steps=2,
)


def test_both_train_and_finished_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "DENSITY_PROMPTS", 2)
    said: list[str] = []
    result = reproduce_amortised(tmp_path / "work", CONFIG, say=said.append)
    assert len(said) == 2 + 3 + 4
    assert {name: len(made) for name, made in result["cells"].items()} == {"base": 1, "mask": 2, "lora": 2}
    assert set(result["validation"]["mask"]) == {"0.001", "1"}
    assert result["chosen"]["lora"] == 1e-3
    base = result["cells"]["base"][0]
    assert all(cell["reward"] != base["reward"] for cell in result["cells"]["lora"])
    # A threshold is crossed at a huge rate only.
    assert result["validation"]["mask"]["1"]["reward"] != result["validation"]["base"]["reward"]
    assert result["cells"]["lora"][0]["density"] is None
    assert 0 < result["cells"]["mask"][0]["density"] <= 1
    text = amortised_markdown(result)
    assert "| mask | " in text
    assert "| lora | 0.001 |" in text
    for path in plot_amortised(result, tmp_path):
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width > 1000

    def never(*args: object, **options: object) -> None:
        raise AssertionError("a finished cell was made again")

    monkeypatch.setattr(amortised, "train", never)
    assert reproduce_amortised(tmp_path / "work", CONFIG)["cells"] == result["cells"]


def test_another_reward_is_climbed_with_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "DENSITY_PROMPTS", 2)
    settings = AmortisedConfig.of("shapes-matching", seeds=3)
    assert (settings.seeds, settings.reward_weight) == (3, 0.3)
    tiny = replace(CONFIG, reward="shapes-matching", rates={"lora": (1e-3,)})
    result = reproduce_amortised(tmp_path / "work", tiny)
    # Log-probabilities.
    assert all(cell["reward"] < 0 for made in result["cells"].values() for cell in made)
    assert "Climbed: shapes-matching" in amortised_markdown(result)
    plot_amortised(result, tmp_path, "other")
    assert (tmp_path / "other.png").exists()


def test_only_bundled_rewards_are_climbed(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"bundled reward .*'image-reward'"):
        reproduce_amortised(tmp_path / "work", AmortisedConfig.of("image-reward"))
    assert not (tmp_path / "work").exists()
