"""Pictures made once: shard by shard over processes, and resumed where a run was stopped.

Every picture has a record (JSON) of its prompt, seed and settings. Both are written under another name and renamed, the
record last, so a picture with its record is whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import DataError
from ..sampling.generation import Side


@dataclass(frozen=True)
class Shot:
    """A picture to make.

    Args:
        file: where to, a PNG.
        record: where its prompt, seed and settings are kept.
        prompt: what to ask for.
        seed: of its noise.
    """

    file: Path
    record: Path
    prompt: str
    seed: int

    @property
    def done(self) -> bool:
        """Whether the picture and its record are there."""
        return self.record.is_file() and self.file.is_file()


def make_missing(
    make: Side,
    shots: Sequence[Shot],
    *,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> int:
    """Side the pictures that are not there yet.

    Args:
        make: makes pictures from prompts and seeds.
        shots: all pictures, of all processes.
        settings: what made them, written into each record.
        batch_size: pictures a call of `make`, >= 1.
        rank, world: this process makes pictures i with i mod world = rank.
        progress: show a progress bar.

    Returns:
        How many pictures this process made.

    Raises:
        DataError: a file cannot be written, or a picture of other prompts or settings is there.
    """
    if batch_size < 1:
        raise DataError(f"expected a batch size of at least 1, got {batch_size}")
    missing = []
    for shot in shots[rank::world]:
        wanted = {"prompt": shot.prompt, "seed": shot.seed} | dict(settings)
        if shot.record.is_file():
            _require_same(shot, wanted)
        if not shot.done:
            missing.append((shot, wanted))
    for folder in {path.parent for shot, _ in missing for path in (shot.file, shot.record)}:
        make_folder(folder)
    for start in tqdm(range(0, len(missing), batch_size), desc="generate", disable=not progress or rank > 0):
        chunk = missing[start : start + batch_size]
        pictures = make([shot.prompt for shot, _ in chunk], [shot.seed for shot, _ in chunk])
        for (shot, wanted), picture in zip(chunk, pictures, strict=True):
            pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            # Written beside the record: benchmarks' own scorers take whatever lies in the picture's folder for a picture.
            part = shot.record.with_name(shot.record.name + ".part")
            Image.fromarray(pixels).save(part, "PNG")
            part.replace(shot.file)
            part.write_text(json.dumps(wanted))
            part.replace(shot.record)
    return len(missing)


def _require_same(shot: Shot, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads(shot.record.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"expected a picture's record in {shot.record}, could not read it: {error}") from error
    wanted = json.loads(json.dumps(wanted))  # a tuple is kept as a list
    if found != wanted:
        changed = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        raise DataError(
            f"expected {shot.file.parent} to be empty or to hold pictures of these prompts and settings, "
            f"{', '.join(changed)} differ in {shot.record.name}; choose another folder"
        )


def make_folder(folder: Path) -> None:
    """Side a folder.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"expected a folder that can be written, got {folder}: {error}") from error


def wait_for(shots: Sequence[Shot], patience_s: float = 600.0) -> None:
    """Wait until all pictures are there; other processes make them.

    Args:
        shots: the pictures.
        patience_s: longest time without a new one.

    Raises:
        DataError: no picture came for that long.
    """
    left, since = len(shots) + 1, time.monotonic()
    while missing := sum(not shot.done for shot in shots):
        if missing != left:
            left, since = missing, time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise DataError(
                f"expected {len(shots)} pictures, {len(shots) - missing} came and no more; run the command again"
            )
        time.sleep(0.2)
