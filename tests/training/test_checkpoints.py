"""The run's folder: resumed with the same settings, also by runs of earlier versions, and refused in one line else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from maskunet.errors import CheckpointError
from maskunet.training import TrainConfig
from maskunet.training.checkpoints import Checkpoints

STATE: dict[str, Any] = {"trained": {"a": torch.arange(3.0)}, "step": 5}


def open_folder(folder: Path, config: dict[str, Any], **groups: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, {"config": config, "method": {"name": "mask"}} | groups)
    checkpoints.load("latest")
    checkpoints.create_folder()
    return checkpoints


def settings(**changes: Any) -> dict[str, Any]:
    return asdict(TrainConfig(mixed_precision="no", allow_tf32=False)) | changes


def test_a_state_is_read_back(tmp_path: Path) -> None:
    checkpoints = open_folder(tmp_path, settings())
    assert checkpoints.load("latest") is None
    path = checkpoints.save(STATE, None)
    assert path == tmp_path / "checkpoint-000005"
    for name in ("latest", "checkpoint-000005", str(path)):
        state = checkpoints.load(name)
        assert state is not None
        assert state["step"] == 5
        assert torch.equal(state["trained"]["a"], STATE["trained"]["a"])
    assert json.loads((tmp_path / "config.json").read_text())["config"]["train_batch_size"] == 4


def test_the_oldest_checkpoints_are_deleted(tmp_path: Path) -> None:
    checkpoints = open_folder(tmp_path, settings())
    for step in (1, 2, 10):
        checkpoints.save(STATE | {"step": step}, 2)
    assert [path.name for path in checkpoints.saved()] == ["checkpoint-000002", "checkpoint-000010"]


def test_a_run_of_an_earlier_version_resumes_with_the_same_settings(tmp_path: Path) -> None:
    """Those runs have neither `allow_tf32`, which was off, nor `validation_batch_size`, which nothing trained depends on."""
    old = {k: v for k, v in settings().items() if k not in ("allow_tf32", "validation_batch_size")}
    open_folder(tmp_path, old).save(STATE, None)
    assert Checkpoints(tmp_path, {"config": settings(), "method": {"name": "mask"}}).load("latest") is not None
    with pytest.raises(CheckpointError, match="got allow_tf32 True instead of False; set them back or use another"):
        open_folder(tmp_path, settings(allow_tf32=True))


def test_other_settings_are_named_in_one_line(tmp_path: Path) -> None:
    open_folder(tmp_path, settings(), data={"num_samples": 7}).save(STATE, None)
    before = (tmp_path / "config.json").read_text()
    changes = settings(learning_rate=0.5, seed=3, validation_prompts=("a",), logging_steps=2)
    with pytest.raises(CheckpointError) as caught:
        open_folder(tmp_path, changes, method={"name": "lora", "targets": "x" * 99}, data={"num_samples": 8})
    assert str(caught.value) == (
        f"expected the settings of the run in {tmp_path}, got learning_rate 0.5 instead of None, seed 3 instead of 0, "
        "name lora instead of mask, another targets, num_samples 8 instead of 7; set them back or use another output_dir"
    )
    assert (tmp_path / "config.json").read_text() == before


def test_settings_that_training_does_not_depend_on_may_change(tmp_path: Path) -> None:
    open_folder(tmp_path, settings()).save(STATE, None)
    changes = settings(validation_batch_size=2, report_to="wandb", checkpointing_steps=1, validation_prompts=("a",))
    assert Checkpoints(tmp_path, {"config": changes, "method": {"name": "mask"}}).load("latest") is not None


def test_checkpoints_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    checkpoints = open_folder(tmp_path / "run", settings())
    path = checkpoints.save(STATE, None)
    with pytest.raises(CheckpointError, match=r"\(checkpoint-000005\), got 'checkpoint-000009'"):
        checkpoints.load("checkpoint-000009")
    with pytest.raises(CheckpointError, match="holds checkpoint-000005; use resume_from_checkpoint='latest'"):
        checkpoints.load(None)
    (path / "state.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"could not read it .*; delete that folder") as caught:
        checkpoints.load("latest")
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="folder that can be written"):
        open_folder(tmp_path / "file" / "run", settings())


def test_the_log_loses_what_a_killed_run_logged_past_its_checkpoint(tmp_path: Path) -> None:
    checkpoints = open_folder(tmp_path, settings())
    for step in (1, 2, 3):
        checkpoints.append_stats({"step": step})
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [entry["step"] for entry in checkpoints.read_stats()] == [1, 2, 3]
    checkpoints.drop_stats_after(2)
    assert (tmp_path / "stats.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
