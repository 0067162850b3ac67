"""Encoded images on disk: one file per result, and the parts of an encoding that is not finished.

    0f3a.safetensors            the result, which is written last
    0f3a.parts/settings.json    what is encoded, and how
    0f3a.parts/00000.safetensors …

The name is a hash of the data set, the settings and the autoencoder, so a stopped encoding goes on with the same ones only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError, first_line
from ..files import make_folder, save_text, save_whole
from .latents import CachedLatents

logger = logging.getLogger(__name__)

_TENSORS = ("mean", "std", "time_ids", "sizes")
_SETTINGS = "settings.json"


def read_cache(path: Path) -> tuple[CachedLatents, Counter[str]] | None:
    """Read a finished encoding; one that is damaged is logged.

    Args:
        path: the file.

    Returns:
        The latents and the number of skipped rows by reason, or None if there is no file that can be read.
    """
    if not path.exists():
        return None
    try:
        data, metadata = _read(path)
        return data, Counter(json.loads(metadata["skipped"]))
    except (SafetensorError, DataError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("cannot read the cache %s (%s), encoding again", path, first_line(error))
        return None


def write_cache(path: Path, data: CachedLatents, skipped: Mapping[str, int]) -> None:
    """Write a finished encoding.

    Args:
        path: the file.
        data: the latents.
        skipped: number of skipped rows by reason.

    Raises:
        DataError: it cannot be written.
    """
    _write(path, data, {"skipped": json.dumps(skipped)})


def _read(path: Path) -> tuple[CachedLatents, dict[str, str]]:
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "captions" in metadata:  # where earlier versions kept them
        captions = tuple(json.loads(metadata["captions"]))
    else:
        captions = _unpack(tensors.pop("caption_bytes"), tensors.pop("caption_offsets"))
    return CachedLatents(captions=captions, **tensors), metadata


def _write(path: Path, data: CachedLatents, metadata: dict[str, str]) -> None:
    # The header of a file may hold 100 MB, which the captions of a large data set exceed.
    encoded = [caption.encode() for caption in data.captions]
    tensors = {key: value.contiguous() for key in _TENSORS if (value := getattr(data, key)) is not None}
    tensors["caption_bytes"] = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), np.uint8))
    tensors["caption_offsets"] = torch.tensor([0, *itertools.accumulate(map(len, encoded))])
    try:
        save_whole(path, lambda part: save_file(tensors, part, metadata))
    except SafetensorError as error:
        raise DataError(f"expected a cache that can be written, got {path}: {first_line(error)}") from error


def _unpack(text: Tensor, offsets: Tensor) -> tuple[str, ...]:
    content = text.numpy().tobytes()
    return tuple(content[start:end].decode() for start, end in itertools.pairwise(offsets.tolist()))


@dataclass
class EncodedParts:
    """What a stopped encoding has left.

    Args:
        parts: the encoded samples, part by part.
        next_row: number of the row to go on with.
        skipped: number of rows that were skipped so far, by reason.
    """

    parts: list[CachedLatents] = field(default_factory=list)
    next_row: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class PartStore:
    """The folder of an encoding's parts.

    Args:
        path: file of the result; the folder lies beside it.
        settings: everything that the result depends on, by name, with the data set's name as "source".
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.folder = path, path.with_suffix(".parts")
        self.settings = json.loads(json.dumps(settings))

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Let one process at a time encode; the others wait, and then read its result.

        The lock goes with its process, also with a killed one. A folder without parts is removed at the end.

        Yields:
            Whether another process had the lock.

        Raises:
            DataError: the folder cannot be written.
        """
        make_folder(self.folder)
        try:
            with (self.folder / "lock").open("w") as file:
                yield _lock(file.fileno(), self.path)
        finally:
            if not self._part(0).exists():
                shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> EncodedParts:
        """Return the parts that are there; those behind a damaged one are removed."""
        result = EncodedParts()
        for number in itertools.count():
            if not (path := self._part(number)).exists():
                break
            try:
                data, metadata = _read(path)
                if int(metadata["first_row"]) != result.next_row:
                    raise ValueError("it does not follow the part before it")
                next_row, skipped = int(metadata["next_row"]), Counter(json.loads(metadata["skipped"]))
            except (SafetensorError, DataError, OSError, KeyError, TypeError, ValueError) as error:
                logger.warning("cannot read %s (%s), encoding again from there", path, first_line(error))
                break
            result = EncodedParts([*result.parts, data], next_row, skipped)
        valid = {_SETTINGS, *(self._part(number).name for number in range(len(result.parts)))}
        for path in self.folder.glob("*.*"):  # also what a killed process has left half written
            if path.name not in valid:
                path.unlink(missing_ok=True)
        if result.parts:
            logger.info("going on with %s at row %d", self.folder, result.next_row)
        else:
            self._report_other_settings()
            save_text(json.dumps(self.settings, indent=1) + "\n", self.folder / _SETTINGS)
        return result

    def _report_other_settings(self) -> None:
        """Log a stopped encoding of the same data set that cannot be continued."""
        for file in self.path.parent.glob(f"*.parts/{_SETTINGS}"):
            other = None
            with contextlib.suppress(OSError, ValueError):
                other = json.loads(file.read_text(encoding="utf-8"))
            if file.parent == self.folder or not isinstance(other, dict):
                continue
            names = [key for key, value in self.settings.items() if other.get(key) != value]
            if "source" not in names:
                logger.warning(
                    "encoding %s from the start: the encoding that was stopped in %s has another %s; delete that folder, or "
                    "set it back",
                    self.settings.get("source"),
                    file.parent,
                    ", ".join(names),
                )

    def append(self, number: int, data: CachedLatents, rows: range, skipped: Mapping[str, int]) -> None:
        """Write a part.

        Args:
            number: its number, counted from 0.
            data: its samples.
            rows: rows of the data set that it covers, skipped ones included.
            skipped: number of rows that were skipped so far, by reason.

        Raises:
            DataError: it cannot be written.
        """
        metadata = {"first_row": str(rows.start), "next_row": str(rows.stop), "skipped": json.dumps(skipped)}
        _write(self._part(number), data, metadata)

    def delete(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _lock(descriptor: int, path: Path) -> bool:
    """Lock an open file; return whether another process had the lock."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: processes encode side by side
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        logger.info("waiting for the process that encodes %s", path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    except OSError:  # a file system without locks
        return False
