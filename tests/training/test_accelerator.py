"""Precision of a run by device and dtype, TF32, and the figures that it reports to a tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import DataError, SettingError
from maskunet.shapes.scenes import training_scene
from maskunet.training import accelerator as module
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=4,
    validation_steps=4,
    checkpointing_steps=3,
    logging_steps=2,
)


def fake_pipe(device: str, dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(unet=SimpleNamespace(device=torch.device(device), dtype=dtype))


HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("device", "dtype", "computes_bf16", "precision"),
    [
        ("cuda", FULL, True, "bf16"),
        ("cuda", FULL, False, "fp16"),
        ("cuda", BRAIN, True, "bf16"),
        ("cuda", BRAIN, False, "bf16"),
        ("cuda", HALF, True, "fp16"),
        ("cuda", HALF, False, "fp16"),
        ("cpu", FULL, True, "no"),
        ("cpu", BRAIN, False, "no"),
        ("mps", FULL, False, "no"),
        ("mps", BRAIN, False, "no"),
    ],
)
def test_auto_is_the_precision_of_device_and_pipeline(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, computes_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes_bf16)
    config = module.resolve_precision(fake_pipe(device, dtype), mu.TrainConfig())
    assert config.mixed_precision == precision
    assert config.allow_tf32 == (device == "cuda")


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_named_precision_is_kept(precision: str) -> None:
    config = mu.TrainConfig(mixed_precision=precision, allow_tf32=False)
    assert module.resolve_precision(fake_pipe("cuda"), config) == config


@pytest.mark.parametrize("precision", ["auto", "no"])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_float16_is_refused_where_it_cannot_train(precision: str, device: str) -> None:
    with pytest.raises(DataError, match=r"expected a pipeline in float32 or bfloat16.*got float16"):
        module.resolve_precision(fake_pipe(device, HALF), mu.TrainConfig(mixed_precision=precision))
    with pytest.raises(DataError, match="or train with mixed_precision='fp16'"):
        module.resolve_precision(fake_pipe("cuda", HALF), mu.TrainConfig(mixed_precision="no"))
    with pytest.raises(SettingError, match="on a CPU, got 'fp16'"):
        module.resolve_precision(fake_pipe("cpu"), mu.TrainConfig(mixed_precision="fp16"))


@pytest.fixture
def matmul() -> Iterator[Any]:
    """PyTorch's own flags, which a CPU build has as well."""
    yield torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("former", ["highest", "high", "medium"])
@pytest.mark.parametrize("allow", [True, False])
def test_tf32_is_set_for_the_run_and_put_back(matmul: Any, former: str, allow: bool) -> None:
    torch.set_float32_matmul_precision(former)
    before = (former, matmul.allow_tf32, matmul.fp32_precision)
    with contextlib.suppress(KeyboardInterrupt), module.tf32_products(torch.device("cuda"), allow):
        assert matmul.allow_tf32 is allow
        raise KeyboardInterrupt
    assert (torch.get_float32_matmul_precision(), matmul.allow_tf32, matmul.fp32_precision) == before
    with module.tf32_products(torch.device("cpu"), allow):
        assert (torch.get_float32_matmul_precision(), matmul.allow_tf32, matmul.fp32_precision) == before


@pytest.mark.parametrize(("allow", "precision"), [(True, "tf32"), (False, "ieee")])
def test_tf32_by_its_newer_name_is_put_back(matmul: Any, allow: bool, precision: str) -> None:
    matmul.fp32_precision = "tf32"  # PyTorch then refuses to read the older flags
    with module.tf32_products(torch.device("cuda"), allow):
        assert matmul.fp32_precision == precision
    assert matmul.fp32_precision == "tf32"


class RecordTracker(GeneralTracker):
    """Records what it receives."""

    name, requires_logging_directory = "record", False
    lines: list[tuple[int | None, dict[str, float]]]
    settings: dict[str, Any]
    finished = False

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        type(self).lines, type(self).finished, self.run_name = [], False, run_name

    @property
    def tracker(self) -> RecordTracker:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        type(self).settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        type(self).finished = True


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def go(pipe: StableDiffusionPipeline, dataset: CachedLatents, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    config = mu.TrainConfig(**{**vars(CONFIG), **changes})
    masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=0.5), seed=0)
    return mu.train(pipe, masker, dataset, config, folder, progress=False).stats


def test_a_tracker_receives_the_lines_of_the_log(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "record", RecordTracker)
    stats = go(pipe, dataset, tmp_path, report_to="record")
    assert [step for step, _ in RecordTracker.lines] == [2, 4, 6]
    assert [{"step": step} | values for step, values in RecordTracker.lines] == stats
    for step, values in RecordTracker.lines:
        names = {"loss", "lr"} | ({"gain", "gain_ci95", "density"} if step in (4, 6) else set())
        assert values.keys() == names
    assert RecordTracker.settings["max_train_steps"] == "6"
    assert RecordTracker.finished


def test_tensorboard_holds_every_step_once_after_a_kill(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(pipe, dataset, tmp_path, report_to="tensorboard")
    # As if it had been killed between the checkpoints of step 3 and step 6.
    (tmp_path / "checkpoint-000006").rename(tmp_path / "checkpoint-000006.part")
    stats = go(pipe, dataset, tmp_path, report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "logs" / "maskunet"))
    events.Reload()
    for tag, steps in {"loss": [2, 4, 6], "lr": [2, 4, 6], "gain": [4, 6], "density": [4, 6]}.items():
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == steps
        expected = [entry[tag] for entry in stats if tag in entry]
        assert [s.value for s in scalars] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_names_its_extra(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "get_available_trackers", list)
    with pytest.raises(SettingError, match=rf"expected {name} .*pip install 'maskunet\[{name}\]'"):
        go(pipe, dataset, tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"tensorboard.*wandb.*got 'paper'"):
        go(pipe, dataset, tmp_path / "run", report_to="paper")
    assert not (tmp_path / "run").exists()
