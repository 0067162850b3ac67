"""Pipelines, maskers and rewards, loaded as the command line names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import DataError
from ..zoo import defaults as bundled
from .checks import check_operators
from .defaults import is_bundled


def local_device(name: str | None) -> Any:
    """Return the device to run on; the process's own GPU under torchrun.

    Args:
        name: value of `--device`; the first accelerator if None.

    Raises:
        DataError: no such device here.
        SettingError: MASKUNET_OPERATORS names no implementation that runs there.
    """
    import torch

    from ..distributed import local_rank
    from ..pipelines import choose_device

    device, rank = choose_device(name), local_rank()
    if rank is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", rank)
    check_operators(device)
    return device


def open_pipeline(
    model: str,
    masker: str | Sequence[str] | None,
    device: str | None,
    dtype: str | None,
    scheduler: str | None,
    strength: float = 1.0,
    compose: str | None = None,
) -> Any:
    """Load maskers and a pipeline, and attach the maskers to it.

    Args:
        model: value of `--model`.
        masker: value or values of `--masker`; none if None.
        device: value of `--device`; the first accelerator if None.
        dtype: value of `--dtype`; the device's usual one if None.
        scheduler: value of `--scheduler`; the model's own if None.
        strength: value of `--strength`.
        compose: value of `--compose`.

    Raises:
        CheckpointError: the model or the masker cannot be read.
        DataError: no such device, dtype or scheduler.
        TargetError: the masker was made for another model.
    """
    from .. import attach, pipelines

    torch_device = local_device(device)
    torch_dtype = pipelines.choose_dtype(dtype, torch_device)
    check_scheduler(scheduler)
    loaded_masker = open_maskers([masker] if isinstance(masker, str) else masker, compose)
    pipelines.silence_loading()
    pipe = pipelines.load_pipeline(model, dtype=torch_dtype, device=torch_device, scheduler=scheduler)
    if loaded_masker is not None:
        attach(pipe, loaded_masker, strength=strength)
    return pipe


def check_scheduler(name: str | None) -> None:
    """Refuse an unknown scheduler before anything is loaded.

    Args:
        name: value of `--scheduler`.

    Raises:
        DataError: no scheduler has that name.
    """
    from ..pipelines import SCHEDULERS

    if name is not None and name not in SCHEDULERS:
        raise DataError(f"expected a scheduler among {', '.join(SCHEDULERS)}, got {name!r}")


def open_masker(source: str) -> Any:
    """Load a masker, or the masks of a search's output, merged by majority where there are several.

    Args:
        source: a folder, a hub id, 'shapes-masker', or a search's output folder.

    Raises:
        CheckpointError: there is no masker, or it cannot be read.
    """
    from .. import load
    from ..maskers import MaskSchedule

    folder, parts = Path(source), _searched_masks(source)
    if not parts:
        return load(source)
    schedules = [masker for masker in map(load, parts) if isinstance(masker, MaskSchedule)]
    if len(schedules) == 1:
        return schedules[0]
    typer.echo(f"merged {len(schedules)} schedules of {folder} by majority; the first alone is {parts[0]}")
    return MaskSchedule.merge(schedules)


def masker_sources(values: Sequence[str]) -> dict[str, str]:
    """Return the sources of maskers by name; those without a name are numbered.

    Args:
        values: values of `--masker`, SOURCE or NAME=SOURCE.

    Raises:
        DataError: a name without a source, or one that stands there twice.
    """
    from ..pretrained import local_path

    sources: dict[str, str] = {}
    for number, value in enumerate(values, 1):
        name, _, source = value.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*=.*", value, re.ASCII | re.DOTALL) or local_path(value).exists():
            name, source = f"masker-{number}", value
        if not source or name in sources:
            raise DataError(f"expected --masker NAME=SOURCE with a source and with each name once, got {value!r:.80}")
        sources[name] = source
    return sources


def check_compose(values: Sequence[str] | None, compose: str | None) -> None:
    """Refuse a rule that no maskers can be composed by, before anything is loaded.

    Args:
        values: values of `--masker`.
        compose: value of `--compose`.

    Raises:
        DataError: there are no maskers to compose, or no such rule.
    """
    if compose is None:
        return
    if compose not in ("product", "majority"):
        raise DataError(f"expected --compose to be product or majority, got {compose!r:.80}")
    if len(values or ()) < 2:
        raise DataError(f"expected --masker at least twice with --compose {compose}, got it {len(values or ())} times")


def open_maskers(values: Sequence[str] | None, compose: str | None = None) -> Any:
    """Load a masker, or the composition of several; None without any.

    Args:
        values: values of `--masker`.
        compose: value of `--compose`.

    Raises:
        CheckpointError: there is no masker, or it cannot be read.
        DataError: names or the rule cannot be used.
    """
    check_compose(values, compose)
    sources = masker_sources(values or ())
    maskers = {name: open_masker(source) for name, source in sources.items()}
    if len(maskers) < 2:
        return next(iter(maskers.values()), None)
    from ..maskers import ComposedMasker

    return ComposedMasker(maskers, compose or "product")


def describe_maskers(values: Sequence[str] | None, compose: str | None = None) -> Any:
    """Return what a record of images says about the maskers: the source of one, or rule and sources of several.

    Args:
        values: values of `--masker`.
        compose: value of `--compose`.
    """
    sources = masker_sources(values or ())
    if len(sources) < 2:
        return next(iter(sources.values()), None)
    return {"compose": compose or "product", "maskers": sources}


def masker_to_attach(values: Sequence[str] | None, compose: str | None = None) -> Any:
    """Return a masker's source, or the masker itself where `attach` does not read it: a search's output, or several.

    Args:
        values: values of `--masker`.
        compose: value of `--compose`.

    Raises:
        CheckpointError: there is no masker, or it cannot be read.
        DataError: names or the rule cannot be used.
    """
    masker = open_maskers(values, compose)
    sources = list(masker_sources(values or ()).values())
    return sources[0] if len(sources) == 1 and not is_search_output(sources[0]) else masker


def is_search_output(source: str) -> bool:
    """Return whether a source is the output folder of a search.

    Args:
        source: a masker or a model, as the command line takes it.
    """
    return bool(_searched_masks(source))


def _searched_masks(source: str) -> list[Path]:
    """Return the folders of a search's masks, none where the source is not a search's output."""
    if (Path(source) / "config.json").is_file():
        return []
    return sorted(path.parent for path in Path(source).glob("masks/*/config.json"))


def reward_sources(rewards: list[str] | None, model: str) -> list[str]:
    """Return the rewards of the command line, or the bundled one with the bundled model.

    Args:
        rewards: values of `--reward`.
        model: value of `--model`.

    Raises:
        DataError: there are none, and the model is not the bundled one.
    """
    if rewards:
        return list(rewards)
    if not is_bundled(model):
        raise DataError("expected --reward (such as image-reward or hpsv2:5); only the model 'shapes' has a default")
    return [bundled.REWARD]


def open_reward(sources: list[str]) -> Any:
    """Load the weighted sum of rewards; move it to the pipeline's device before use.

    Args:
        sources: descriptions, such as "hpsv2:5".

    Raises:
        RewardError: an unknown name, or a weight that is not a number.
        CheckpointError: its weights cannot be read.
    """
    from ..pipelines import silence_loading
    from ..rewards import parse_reward

    silence_loading()
    return parse_reward(sources)
