"""Run a benchmark: generate the images of every side, score them, compare the sides.

All sides get the same prompts and seeds, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..errors import SettingError
from ..sampling.generation import Side
from ..zoo.defaults import CHANCE_TASK
from .detectors import JudgeDetector
from .image_jobs import BenchmarkImage, ImageJob, generate_missing, wait_for_images
from .scores import Score, Scores


@runtime_checkable
class Benchmark(Protocol):
    """Prompts, folder layout and rules of a benchmark: `GenEval`, `T2ICompBench`."""

    @property
    def overall(self) -> str | None:
        """Name of the mean over tasks; None if the benchmark has no such figure."""
        ...

    @property
    def digits(self) -> int:
        """Digits after the point in its tables."""
        ...

    def jobs(self, folder: Path) -> list[ImageJob]:
        """Return the images to generate.

        Args:
            folder: the side's folder.
        """
        ...

    def find_images(self, folder: Path) -> list[BenchmarkImage]:
        """Return the images of a folder in the benchmark's layout.

        Args:
            folder: the side's folder.
        """
        ...

    def score(
        self, folder: Path, results: Path, jobs: Sequence[ImageJob] | None = None, *, progress: bool = True
    ) -> list[Score]:
        """Score the images of a folder and write the benchmark's own result files.

        Args:
            folder: the side's folder.
            results: folder for the result files.
            jobs: the images that count; all if None.
            progress: show a progress bar.
        """
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
    on_generated: Callable[[Path, int], object] | None = None,
) -> Scores | None:
    """Run a benchmark on every side; images that exist already are kept.

    Args:
        benchmark: the benchmark.
        sides: sides by name.
        output: receives one folder per side, in the benchmark's layout, with its results.
        settings: settings of each side, written beside its images; a folder of other settings is refused.
        batch_size: images per call, one number or one per side.
        rank: this process generates the images i with i mod world = rank; process 0 scores all.
        world: number of processes.
        progress: show progress bars.
        on_generated: called with each side's folder and the number of images that this process generated.

    Returns:
        The scores; None on all processes but the first.

    Raises:
        SettingError: there are no sides.
        DataError: a folder cannot be used.
    """
    if not sides:
        raise SettingError("expected at least one side to run the benchmark on, got none")
    jobs = {name: benchmark.jobs(output / name) for name in sides}
    for name, side in sides.items():
        count = generate_missing(
            side,
            jobs[name],
            settings=(settings or {}).get(name, {}),
            batch_size=batch_size if isinstance(batch_size, int) else batch_size[name],
            rank=rank,
            world=world,
            progress=progress,
        )
        if on_generated is not None:
            on_generated(output / name, count)
    if rank > 0:
        return None
    scores = {}
    for name in sides:
        wait_for_images(jobs[name])
        scores[name] = benchmark.score(output / name, output / name, jobs[name], progress=progress)
    return gather_scores(benchmark, scores)


def gather_scores(benchmark: Benchmark, scores: Mapping[str, Sequence[Score]]) -> Scores:
    """Return a benchmark's scores of all sides.

    In the shapes world a second mean over tasks leaves out the task that its model cannot do.

    Args:
        benchmark: the benchmark.
        scores: scores of single images by side.
    """
    without = CHANCE_TASK if isinstance(getattr(benchmark, "detector", None), JudgeDetector) else None
    return Scores.gather(scores, overall=benchmark.overall, digits=benchmark.digits, without=without)
