"""Figures that a run reports to a tracker of accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import DataError
from maskunet.shapes.scenes import training_scene
from maskunet.training import accelerator as module
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6,
    train_batch_size=2,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=4,
    validation_steps=4,
    checkpointing_steps=3,
    logging_steps=2,
)


class RecordTracker(GeneralTracker):
    """Keeps what it is told."""

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


def test_a_tracker_is_told_the_lines_of_the_statistics(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "record", RecordTracker)
    stats = go(pipe, dataset, tmp_path, report_to="record")
    assert [step for step, _ in RecordTracker.lines] == [2, 4, 6]
    assert [{"step": step} | values for step, values in RecordTracker.lines] == stats
    for step, values in RecordTracker.lines:
        seen = {"loss", "lr"} | ({"gain", "gain_ci95", "density"} if step in (4, 6) else set())
        assert values.keys() == seen
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
    with pytest.raises(DataError, match=rf"expected {name} .*pip install 'maskunet\[{name}\]'"):
        go(pipe, dataset, tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tensorboard.*wandb.*got 'paper'"):
        go(pipe, dataset, tmp_path / "run", report_to="paper")
    assert not (tmp_path / "run").exists()
