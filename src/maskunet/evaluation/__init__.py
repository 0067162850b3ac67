"""Evaluation: run a benchmark on several sides, measure folders of images, compare with the base model, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

# The command line reads the defaults before anything heavy is imported.
_PUBLIC = {
    "evaluate": "run",
    "score_images": "run",
    "measure_images": "measurement",
    "compare": "comparison",
    "run_benchmark": "benchmark",
    "search_side": "sides",
    "Benchmark": "benchmark",
    "BenchmarkReport": "report",
    "Comparison": "comparison",
    "GenEval": "geneval",
    "ImageReport": "report",
    "Scores": "scores",
    "T2ICompBench": "t2i_compbench",
}

__all__ = [*_PUBLIC]


__getattr__ = exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .benchmark import Benchmark, run_benchmark
    from .comparison import Comparison, compare
    from .geneval import GenEval
    from .measurement import measure_images
    from .report import BenchmarkReport, ImageReport
    from .run import evaluate, score_images
    from .scores import Scores
    from .sides import search_side
    from .t2i_compbench import T2ICompBench
