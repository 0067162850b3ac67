"""Steps without a finite loss or gradient: skipped, counted, and the end of a run in which they go on."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.data import CachedLatents
from maskunet.errors import CheckpointError, DataError
from maskunet.maskers import MaskTable
from maskunet.shapes.scenes import training_scene
from maskunet.training import METHODS, build_method, trainer
from maskunet.training import prediction_errors as module
from maskunet.training.step_guard import SKIPPED_IN_A_ROW
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_scheduler="constant",
    lr_warmup_steps=0,
    validation_samples=2,
    checkpointing_steps=2,
    logging_steps=1,
)
REAL = module.diffusion_errors


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def config(**changes: Any) -> mu.TrainConfig:
    return mu.TrainConfig(**{**vars(CONFIG), **changes})


def new_masker(pipe: StableDiffusionPipeline) -> mu.LowRankMasker:
    return mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(initial_logit=0.0), seed=0)


class PoisonGradient(torch.autograd.Function):
    """The identity, whose gradient is a number of its own."""

    @staticmethod
    def forward(ctx: Any, errors: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return errors.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.full_like(grads[0], ctx.value), None


def poison_loss(errors: torch.Tensor, value: float) -> torch.Tensor:
    return errors * value


def poison_gradient(errors: torch.Tensor, value: float) -> torch.Tensor:
    return PoisonGradient.apply(errors, value)  # type: ignore[no-any-return, no-untyped-call]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Poison the batches of these numbers, from 1."""

    def start(
        batches: Collection[int], how: Callable[..., torch.Tensor] = poison_loss, value: float = math.nan
    ) -> None:
        calls = 0

        def errors(*args: Any, **options: Any) -> torch.Tensor:
            nonlocal calls
            if not torch.is_grad_enabled():  # validation
                return REAL(*args, **options)
            calls += 1
            result = REAL(*args, **options)
            return how(result, value) if calls in batches else result

        monkeypatch.setattr(module, "diffusion_errors", errors)

    return start


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("how", "value"), [(poison_loss, math.nan), (poison_loss, math.inf), (poison_gradient, math.nan)]
)
def test_a_bad_step_changes_no_parameter_and_is_counted(
    pipe: StableDiffusionPipeline,
    dataset: CachedLatents,
    tmp_path: Path,
    poison: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    method: str,
    how: Callable[..., torch.Tensor],
    value: float,
) -> None:
    poison({2, 3}, how, value)
    mask = mu.LowRankMaskerConfig(initial_logit=0.0)
    built = build_method(method, pipe, mask, rank=2, seed=0)
    with caplog.at_level(logging.WARNING):
        run = mu.train(pipe, built, dataset, config(checkpointing_steps=1), tmp_path, progress=False)
    states = [torch.load(tmp_path / f"checkpoint-{i:06d}" / "state.pt", weights_only=True) for i in range(1, 7)]
    trained = [state["trained"] for state in states]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(trained)]
    assert same == [True, True, False, False, False]
    assert [entry.get("skipped_steps") for entry in run.stats] == [None, 1, 2, 2, 2, 2]
    assert [math.isfinite(entry.get("loss", math.nan)) for entry in run.stats] == [
        math.isfinite(value) or how is poison_gradient or i not in (1, 2) for i in range(6)
    ]
    for line in (tmp_path / "stats.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the log"))
    assert [record.getMessage()[:14] for record in caplog.records if "skipped" in record.getMessage()] == [
        "skipped step 2",
        "skipped step 3",
    ]
    if method.startswith("mask"):
        assert run.card["recipe"]["Skipped steps"] == "2 of 6, without a finite loss or gradient"


def test_a_run_without_bad_steps_does_not_mention_them(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    run = mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    assert "Skipped steps" not in run.card["recipe"]
    assert not any("skipped_steps" in entry for entry in run.stats)


def test_one_bad_part_of_an_accumulated_step_skips_the_step(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, poison: Callable[..., None]
) -> None:
    poison({3})
    run = mu.train(pipe, new_masker(pipe), dataset, config(gradient_accumulation_steps=2), tmp_path, progress=False)
    assert [entry.get("skipped_steps") for entry in run.stats] == [None, 1, 1, 1, 1, 1]


def test_the_count_survives_an_interruption(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, poison: Callable[..., None]
) -> None:
    settings = config(logging_steps=6)
    poison({1, 4})
    uninterrupted = mu.train(pipe, new_masker(pipe), dataset, settings, tmp_path / "a", progress=False)

    def stop(errors: torch.Tensor, value: float) -> torch.Tensor:
        if stop.calls == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        stop.calls += 1  # type: ignore[attr-defined]
        return errors * value

    stop.calls = 0  # type: ignore[attr-defined]
    poison({1, 4, 6}, stop)
    with pytest.raises(KeyboardInterrupt):
        mu.train(pipe, new_masker(pipe), dataset, settings, tmp_path / "b", progress=False)
    poison(())
    resumed = mu.train(pipe, new_masker(pipe), dataset, settings, tmp_path / "b", progress=False)
    assert resumed.stats == uninterrupted.stats
    assert resumed.stats[-1]["skipped_steps"] == 2
    for a, b in zip(resumed.masker.parameters(), uninterrupted.masker.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("how", [poison_loss, poison_gradient])
def test_bad_steps_that_go_on_stop_the_run(
    pipe: StableDiffusionPipeline,
    dataset: CachedLatents,
    tmp_path: Path,
    poison: Callable[..., None],
    how: Callable[..., torch.Tensor],
) -> None:
    settings = config(max_train_steps=40, checkpointing_steps=4, validation_samples=0)
    poison(range(7, 100), how)
    with pytest.raises(DataError, match=rf"{SKIPPED_IN_A_ROW} steps in a row.*checkpoint-000012 is intact") as caught:
        mu.train(pipe, new_masker(pipe), dataset, settings, tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    state = torch.load(tmp_path / "checkpoint-000012" / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["trained"].values())
    assert not (tmp_path / "masker").exists()
    assert attachment_of(pipe) is None


def test_bad_steps_with_good_ones_between_do_not_stop_the_run(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, poison: Callable[..., None]
) -> None:
    poison([n for n in range(1, 19) if n % 3])
    settings = config(max_train_steps=18, checkpointing_steps=18, validation_samples=0, logging_steps=18)
    run = mu.train(pipe, new_masker(pipe), dataset, settings, tmp_path, progress=False)
    assert run.stats[-1]["skipped_steps"] == 12


def test_parameters_that_are_not_finite_stop_the_run_at_once(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an overflow in the optimiser would: no later step can mend it."""
    masker = MaskTable.for_unet(pipe.unet)
    name, parameter = next(iter(masker.named_parameters()))

    def errors(*args: Any, **options: Any) -> torch.Tensor:
        result = REAL(*args, **options)
        errors.calls += torch.is_grad_enabled()  # type: ignore[attr-defined]
        if errors.calls == 3:  # type: ignore[attr-defined]
            parameter.data.view(-1)[0] = math.nan
        return result

    errors.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "diffusion_errors", errors)
    with pytest.raises(DataError, match="checkpoint-000002 is intact") as caught:
        mu.train(pipe, masker, dataset, CONFIG, tmp_path, progress=False)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint-000004").exists()


def test_a_masker_of_nan_is_refused_at_the_start(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    masker = new_masker(pipe)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        mu.train(pipe, masker, dataset, CONFIG, tmp_path, progress=False)


def test_a_checkpoint_of_nan_is_refused(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    path = tmp_path / "checkpoint-000006" / "state.pt"
    state = torch.load(path, weights_only=True)
    name = next(iter(state["trained"]))
    state["trained"][name].fill_(math.nan)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"checkpoint.*step 6.*holds NaN or Inf") as caught:
        mu.train(pipe, new_masker(pipe), dataset, CONFIG, tmp_path, progress=False)
    assert name in str(caught.value)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[Any]]:
    """Train in fp16 with a loss scaler on the CPU, from this scale on; returns the list of the runs' accelerators."""

    def start(scale: float) -> list[Any]:
        accelerators: list[Any] = []
        real = trainer.build_accelerator

        def build(*args: Any) -> Any:
            accelerator = real(*args)
            accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            accelerators.append(accelerator)
            return accelerator

        monkeypatch.setattr(trainer, "build_accelerator", build)
        return accelerators

    return start


def test_the_loss_scalers_own_search_is_no_fault(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, half: Callable[[float], list[Any]]
) -> None:
    accelerators = half(2.0**45)
    settings = config(max_train_steps=40, checkpointing_steps=40, validation_samples=0)
    masker = new_masker(pipe)
    start = copy.deepcopy(masker.state_dict())
    run = mu.train(pipe, masker, dataset, settings, tmp_path, progress=False)
    assert not any("skipped_steps" in entry for entry in run.stats)
    assert all(math.isfinite(entry["loss"]) for entry in run.stats)
    # Far more halvings than bad steps in a row that stop a run; at a scale that fits, the masker trains.
    assert accelerators[0].scaler.get_scale() < 2.0**30
    assert any(not torch.equal(value, start[key]) for key, value in masker.state_dict().items())


@pytest.mark.parametrize("how", [poison_loss, poison_gradient])
def test_bad_steps_in_half_precision_are_told_from_the_search(
    pipe: StableDiffusionPipeline,
    dataset: CachedLatents,
    tmp_path: Path,
    half: Callable[[float], list[Any]],
    poison: Callable[..., None],
    how: Callable[..., torch.Tensor],
) -> None:
    half(8.0)
    poison(range(1, 100), how)
    # NaN in the gradients alone could be an overflow of the scale until the scale has fallen to 1, after three steps.
    last = SKIPPED_IN_A_ROW + (3 if how is poison_gradient else 0)
    settings = config(max_train_steps=40, validation_samples=0)
    with pytest.raises(DataError, match=rf"step {last} was the last of {SKIPPED_IN_A_ROW} steps in a row"):
        mu.train(pipe, new_masker(pipe), dataset, settings, tmp_path, progress=False)
