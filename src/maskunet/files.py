"""Write files atomically: under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from .errors import DataError, first_line

#: Objects of scalars up to this many characters are written on one line by `save_json`.
_LINE = 240


def make_folder(folder: Path) -> None:
    """Make a folder for output.

    Args:
        folder: its path; parents are made too.

    Raises:
        DataError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"expected a folder that can be written, got {folder}: {first_line(error)}") from error


def save_text(text: str, path: Path) -> None:
    """Write a text atomically.

    Args:
        text: the text.
        path: the file.

    Raises:
        DataError: it cannot be written.
    """
    save_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def save_json(value: Any, path: Path) -> None:
    """Write JSON that is compact and diffs well: a list of scalars, or a short object of scalars, takes one line.

    Args:
        value: dicts with string keys, lists and scalars.
        path: the file.

    Raises:
        DataError: it cannot be written.
    """
    save_text(_json_text(value, "") + "\n", path)


def _json_text(value: Any, indent: str) -> str:
    if not isinstance(value, dict | list | tuple) or not value:
        return json.dumps(value)
    items = list(value.values()) if isinstance(value, dict) else list(value)
    if not any(isinstance(item, dict | list | tuple) for item in items):
        line = json.dumps(value)
        if not isinstance(value, dict) or len(line) <= _LINE:
            return line
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(str(key))}: {_json_text(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _json_text(item, inner) for item in items) + f"\n{indent}]"


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """Return the JSON object of a file.

    Args:
        path: the file.
        expected: what it should hold, for the error.

    Raises:
        DataError: it cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"expected {expected} in {path}, could not read it: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"expected {expected} in {path}, a JSON object, got {type(value).__name__}")
    return value


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it.

    Args:
        path: the file.
        write: writes the content to the path that it receives.

    Raises:
        DataError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write the same file
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        raise DataError(f"expected a file that can be written, got {path}: {first_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def save_folder(path: Path, write: Callable[[Path], object], *, keep: Collection[str] = ()) -> None:
    """Write a folder under a temporary name, then put it in the place of the former one.

    Args:
        path: the folder; its parents are made.
        write: writes the content to the empty folder that it receives.
        keep: names of files of the former folder that are kept if `write` writes none of that name.

    Raises:
        DataError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        for name in keep:
            if (path / name).is_file() and not (part / name).exists():
                shutil.copy(path / name, part / name)
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    except OSError as error:
        raise DataError(f"expected a folder that can be written, got {path}: {first_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
