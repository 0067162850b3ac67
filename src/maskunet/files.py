"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import DataError


def make_folder(folder: Path) -> None:
    """Side a folder for output.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"expected a folder that can be written, got {folder}: {error}") from error


def save_text(text: str, path: Path) -> None:
    """Write a text under a temporary name, then rename it.

    Raises:
        DataError: it cannot be written.
    """
    save_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by `write` under a temporary name, then rename it.

    Raises:
        DataError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        raise DataError(f"expected a file that can be written, got {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
