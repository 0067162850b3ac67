"""The study of guidance: accuracy over tasks, paired differences, a short run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.studies import guidance
from benchmarks.studies.guidance import GuidanceConfig, paired_difference, run_guidance, share_right
from benchmarks.studies.guidance_report import guidance_markdown, plot_guidance

from maskunet.machine import machine


def test_tasks_weigh_the_same() -> None:
    assert share_right("1000001") == pytest.approx(1 / 6)
    assert share_right("111111000000") == 0.5


def test_repeats_of_a_prompt_belong_together() -> None:
    """Eight images of one distinct prompt per task say less than 48 distinct prompts."""
    verdicts, none = "111111000000" * 4, "0" * 48
    repeats = paired_difference(verdicts, none, ["a", "b", "c", "d", "e", "f"] * 8)
    distinct = paired_difference(verdicts, none, [str(i) for i in range(48)])
    assert repeats.value == distinct.value == 0.5
    assert repeats.low < distinct.low < 0.5 < distinct.high < repeats.high
    assert repeats.high <= 1


def test_a_short_study_resumes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {name: guidance.SIDES[name] for name in ("constant masks, every layer", "LoRA, decoder attention")}
    monkeypatch.setattr(guidance, "SIDES", sides)
    monkeypatch.setattr(guidance, "encode_world", lambda pipe, name: zoo_world(pipe))
    config = GuidanceConfig(
        seeds=1, steps=2, train_batch_size=4, scales=(2.0, 4.0), calls=(4, 8), prompts=12, validation_prompts=6,
        reference_images=64,
    )  # fmt: skip
    record = run_guidance(tmp_path / "work", config)
    assert list(record["cells"]) == ["guidance", "no guidance", *sides]
    cell = record["cells"]["constant masks, every layer"][0]["4"]
    assert set(cell) == {"right", "fid", "equal", "twice"}
    assert record["training"]["LoRA, decoder attention"][0]["parameters"] > 0
    monkeypatch.setattr(guidance, "generate", None)  # every cell is on disk
    assert run_guidance(tmp_path / "work", config) == record
    text = guidance_markdown(record | {"machine": machine()})
    assert "constant masks, every layer" in text
    assert plot_guidance(record, tmp_path) == [tmp_path / "guidance.png"]


def zoo_world(pipe: Any) -> Any:
    from maskunet.zoo.dataset import encode_world

    return encode_world(pipe, "shapes", train_samples=32, held_out_samples=8)
