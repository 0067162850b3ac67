"""Run a benchmark: make every side's pictures, score them, compare the sides.

A side is a name and a function `make(prompts, seeds) -> pictures`; the base model, a masker, a search. All sides get the
same prompts and seeds, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from ..sampling.generation import Side
from .image_jobs import Shot, make_missing, wait_for
from .scores import Score, Scores


class Benchmark(Protocol):
    """Prompts, folders and rules of a benchmark: `GenEval`, `T2ICompBench`."""

    @property
    def overall(self) -> str | None:
        """Name of the mean over tasks; None where the benchmark has no such figure."""
        ...

    @property
    def digits(self) -> int:
        """Digits after the point in its tables."""
        ...

    def shots(self, folder: Path) -> list[Shot]:
        """Return the pictures to make."""
        ...

    def score(
        self, folder: Path, results: Path, only: Sequence[Shot] | None = None, *, progress: bool = True
    ) -> list[Score]:
        """Score the pictures of a folder and write the benchmark's own files into `results`."""
        ...


def run_benchmark(
    benchmark: Benchmark,
    sides: Mapping[str, Side],
    output: Path,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | Mapping[str, int] = 8,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
    say: Callable[[str], object] = lambda text: None,
) -> Scores | None:
    """Run a benchmark on every side; pictures that are there already are kept.

    Args:
        benchmark: what to run.
        sides: makes pictures, by the side's name.
        output: receives a folder for each side, in the benchmark's layout, with its results.
        settings: what makes each side's pictures, kept with them; a folder of other settings is refused.
        batch_size: pictures a call, one number or one for each side.
        rank, world: this process makes its share of the pictures; the first one scores them all.
        progress: show progress bars.
        say: told what was made.

    Returns:
        The scores; None on all processes but the first.

    Raises:
        DataError: no sides, or a folder that cannot be used.
    """
    if not sides:
        raise DataError("expected at least one side to run the benchmark on, got none")
    shots = {side: benchmark.shots(output / side) for side in sides}
    for side, make in sides.items():
        made = make_missing(
            make,
            shots[side],
            settings=(settings or {}).get(side, {}),
            batch_size=batch_size if isinstance(batch_size, int) else batch_size[side],
            rank=rank,
            world=world,
            progress=progress,
        )
        say(f"{made} pictures made, {output / side}")
    if rank > 0:
        return None
    found = {}
    for side in sides:
        wait_for(shots[side])
        found[side] = benchmark.score(output / side, output / side, shots[side], progress=progress)
    return Scores.of(found, overall=benchmark.overall, digits=benchmark.digits)
