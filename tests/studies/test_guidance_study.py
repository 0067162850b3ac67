"""The study of guidance: accuracy over tasks, paired differences, constant masks written into weights, a short run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.studies import guidance
from benchmarks.studies.guidance import GuidanceConfig, paired_difference, run_guidance, share_right, write_weights
from benchmarks.studies.guidance_report import guidance_markdown, plot_guidance

import maskunet as mu
from maskunet import zoo
from maskunet.maskers import MaskTable


def test_tasks_weigh_the_same() -> None:
    assert share_right("1000001") == pytest.approx(1 / 6)
    assert share_right("111111000000") == 0.5


def test_repeats_of_a_prompt_are_resampled_together() -> None:
    prompts = ["a", "b", "c", "d", "e", "f"] * 8
    equal = paired_difference("1" * 48, "0" * 48, prompts)
    assert (equal.value, equal.low, equal.high) == (1, 1, 1)
    # One distinct prompt per task: its eight images are one observation, so the interval has no width.
    repeats = paired_difference("111111000000" * 4, "0" * 48, prompts)
    assert (repeats.value, repeats.low, repeats.high) == (0.5, 0.5, 0.5)
    distinct = paired_difference("111111000000" * 4, "0" * 48, [str(i) for i in range(48)])
    assert distinct.low < 0.5 < distinct.high


def test_written_weights_are_those_of_the_masks() -> None:
    pipe = zoo.load("shapes")
    masked = copy.deepcopy(pipe)
    table = MaskTable.for_unet(pipe.unet, "every-layer", initial_logit=0.3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in table.logits.values():
            logits.copy_(torch.randn(logits.shape, generator=generator) + 2)
    mu.attach(masked, table)
    write_weights(pipe, table)
    config = pipe.unet.config
    x = torch.randn(2, config.in_channels, 8, 8, generator=generator)
    t, c = 500, torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, t, c).sample, masked.unet(x, t, c).sample, rtol=1e-4, atol=1e-5)


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
    text = guidance_markdown(record)
    assert "constant masks, every layer" in text
    assert plot_guidance(record, tmp_path) == [tmp_path / "guidance.png"]


def zoo_world(pipe: Any) -> Any:
    from maskunet.zoo.dataset import encode_world

    return encode_world(pipe, "shapes", train_samples=32, held_out_samples=8)
