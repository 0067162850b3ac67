"""Pipelines, maskers and rewards, loaded as the command line names them."""

from __future__ import annotations

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
    masker: str | None,
    device: str | None,
    dtype: str | None,
    scheduler: str | None,
    strength: float = 1.0,
) -> Any:
    """Load a masker and a pipeline, and attach the masker to it.

    Args:
        model: value of `--model`.
        masker: value of `--masker`; none if None.
        device: value of `--device`; the first accelerator if None.
        dtype: value of `--dtype`; the device's usual one if None.
        scheduler: value of `--scheduler`; the model's own if None.
        strength: value of `--strength`.

    Raises:
        CheckpointError: the model or the masker cannot be read.
        DataError: no such device, dtype or scheduler.
        TargetError: the masker was made for another model.
    """
    from .. import attach, pipelines

    torch_device = local_device(device)
    torch_dtype = pipelines.choose_dtype(dtype, torch_device)
    check_scheduler(scheduler)
    loaded_masker = None if masker is None else open_masker(masker)
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


def masker_to_attach(source: str | None) -> Any:
    """Return a masker's source, or the masker itself where it is a search's output, which `attach` does not read.

    Args:
        source: value of `--masker`.

    Raises:
        CheckpointError: there is no masker, or it cannot be read.
    """
    if source is None:
        return None
    masker = open_masker(source)
    return masker if is_search_output(source) else source


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
