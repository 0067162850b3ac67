"""Training in several processes, and a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("run_script.py")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_script(folder: Path, *, processes: int = 1, **options: Any) -> subprocess.Popen[bytes]:
    launch = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    arguments = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    return subprocess.Popen([*launch, str(SCRIPT), str(folder), *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(sorted(folder.glob("checkpoint-??????"))[-1] / "state.pt", weights_only=True)


def test_two_processes_equal_one_of_the_same_global_batch(tmp_path: Path) -> None:
    runs = [
        run_script(tmp_path / "one", batch_size=4, steps=6),
        run_script(tmp_path / "two", processes=2, batch_size=2, steps=6),
    ]
    for run in runs:
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors.decode()[-3000:]
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for key, value in one["trained"].items():
        torch.testing.assert_close(value, two["trained"][key], atol=2e-4, rtol=1e-3)
    figures = [json.loads((tmp_path / name / "stats.jsonl").read_text().splitlines()[-1]) for name in ("one", "two")]
    for name in ("gain", "gain_ci95", "density"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-2, abs=1e-6)
    # 12 samples, 3 steps of 4 per epoch: both runs see every sample once in each of the two epochs.
    for name in ("one", "two"):
        files = (tmp_path / name).glob("seen-*")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        for epoch in (0, 1):
            indices = [i for line in lines if line["step"] // 3 == epoch for i in line["indices"]]
            assert sorted(indices) == list(range(12))


@pytest.mark.parametrize("group", ["none", "open"])
def test_processes_train_twice_and_leave_the_callers_group(tmp_path: Path, group: str) -> None:
    run = run_script(tmp_path, processes=2, batch_size=2, steps=3, runs=2, group=group)
    _, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors.decode()[-3000:]
    assert "destroy_process_group() was not called" not in errors.decode()
    first, second = state(tmp_path / "0"), state(tmp_path / "1")
    assert first["step"] == second["step"] == 3
    assert all(torch.equal(value, second["trained"][key]) for key, value in first["trained"].items())
    assert (tmp_path / "0" / "stats.jsonl").read_text() == (tmp_path / "1" / "stats.jsonl").read_text()


def test_a_process_group_that_was_closed_is_one_line(tmp_path: Path) -> None:
    run = run_script(tmp_path / "run", processes=2, batch_size=2, steps=3, group="closed")
    _, errors = run.communicate(timeout=240)
    assert run.returncode != 0
    assert "SettingError: expected an open process group, the launcher's was closed; train before" in errors.decode()
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_two_processes_prints_one_line(tmp_path: Path) -> None:
    sizes = (
        "--max-train-samples=4",
        "--train-batch-size=1",
        "--gradient-accumulation-steps=1",
        "--validation-samples=1",
    )
    words = ["train", "--model=shapes", "--dataset=shapes", *sizes, "--dry-run", f"--output={tmp_path / 'run'}"]
    dry_run = subprocess.run(
        [*TORCHRUN, "2", "-m", "maskunet", *words], env=ENVIRONMENT, capture_output=True, timeout=240, text=True
    )
    assert dry_run.returncode == 0, dry_run.stderr[-3000:]
    assert dry_run.stdout.count("dry run: 4 samples") == 1
    assert not (tmp_path / "run").exists()


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    uninterrupted, killed = run_script(tmp_path / "uninterrupted", steps=12), run_script(tmp_path / "killed", steps=12)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoint-??????")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert uninterrupted.wait(240) == 0
    assert uninterrupted.stderr is not None
    uninterrupted.stderr.close()
    again = run_script(tmp_path / "killed", steps=12)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors.decode()[-3000:]
    a, b = state(tmp_path / "uninterrupted"), state(tmp_path / "killed")
    assert a["trained"].keys() == b["trained"].keys()
    assert all(torch.equal(value, b["trained"][key]) for key, value in a["trained"].items())
    for key in a["optimizer"]["state"]:
        assert all(torch.equal(v, b["optimizer"]["state"][key][k]) for k, v in a["optimizer"]["state"][key].items())
    assert (tmp_path / "uninterrupted" / "stats.jsonl").read_text() == (
        tmp_path / "killed" / "stats.jsonl"
    ).read_text()
