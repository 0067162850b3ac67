"""Checks of values before anything is loaded or written."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import typer

from ..errors import DataError, SettingError, first_line
from ..evaluation.published import FEATURE_NAMES


def finite(value: float | None) -> float | None:
    """Return a finite number, or None; a callback of options.

    Args:
        value: the number.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, got {value}")
    return value


def all_finite(values: list[float] | None) -> list[float] | None:
    """Return finite numbers, or None; a callback of options that may be repeated.

    Args:
        values: the numbers.
    """
    for value in values or []:
        finite(value)
    return values


def valid_seed(value: int) -> int:
    """Return a seed that a `torch.Generator` takes; a callback of options.

    Args:
        value: the seed.
    """
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"expected an integer >= 0 and < 2**63, got {value}")
    return value


def check_seeds(seed: int, count: int) -> None:
    """Refuse a first seed whose last follower a `torch.Generator` does not take.

    Args:
        seed: seed of the first image.
        count: images, of consecutive seeds.

    Raises:
        SettingError: the last seed is 2^63 or more.
    """
    if seed + count > 2**63:
        raise SettingError(f"expected --seed such that {count} consecutive seeds are below 2**63, got {seed}")


def check_output(folder: Path) -> None:
    """Refuse an output folder that cannot be written, without making it.

    Args:
        folder: the folder.

    Raises:
        DataError: a file is in the way, or the folder may not be written.
    """
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        reason = "" if existing.is_dir() else f"{existing} is a file"
        if not reason:
            # Permissions say too much to root, who still cannot write to /proc or to a read-only disk.
            with tempfile.TemporaryDirectory(dir=existing):
                pass
    except (OSError, ValueError) as error:
        reason = first_line(error)
    if reason:
        raise DataError(f"expected a folder that can be written, got {folder}: {reason}")


def check_operators(device: Any) -> None:
    """Check the environment variable that forces an implementation of the masked layers.

    Args:
        device: the device that will run them.

    Raises:
        SettingError: no such implementation, or one that the device cannot run.
    """
    from ..operators import implementation

    name = os.environ.get(implementation.VARIABLE, "auto")
    if name not in implementation.IMPLEMENTATIONS:
        names = ", ".join(implementation.IMPLEMENTATIONS)
        raise SettingError(f"expected {implementation.VARIABLE} to be one of {names}, got {name!r}")
    if name == "triton" and not implementation.available(device):
        raise SettingError(f"expected a GPU and Triton for {implementation.VARIABLE}=triton, got {device}")


def check_exists(path: Path | None, flag: str, expected: str) -> None:
    """Refuse a path that does not exist.

    Args:
        path: the path; None is fine.
        flag: the flag that names it.
        expected: what it should be.

    Raises:
        DataError: it does not exist.
    """
    if path is not None and not path.exists():
        raise DataError(f"expected {flag} to be {expected}, {path} is not there")


def check_features(name: str) -> None:
    """Refuse a feature space that is not described as one.

    Args:
        name: value of `--features`.

    Raises:
        SettingError: an unknown kind, or no source.
    """
    kind, _, source = name.partition(":")
    if not (name in ("cmmd", "inception", "shapes") or (kind in ("clip", "cmmd", "dinov2") and source)):
        raise SettingError(f"expected --features to be {FEATURE_NAMES}, got {name!r}")


def read_prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """Return the prompts of the command line, then those of a file.

    Args:
        prompts: prompts of the command line.
        file: text file with one prompt per line.

    Raises:
        DataError: no prompt, an empty one, or a file that cannot be read.
    """
    prompts = list(prompts or [])
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"expected a text file with one prompt per line, could not read {file}: {first_line(error)}"
            ) from error
        file_prompts = [line.strip() for line in lines if line.strip()]
        if not file_prompts:
            raise DataError(f"expected one prompt per line in {file}, it has none")
        prompts += file_prompts
    if any(not prompt.strip() for prompt in prompts) or not prompts:
        raise DataError("expected at least one prompt and no empty one; give --prompt or --prompts-file")
    return prompts
