"""Evaluation: generate at scale, judge, run benchmarks, compare with the base model, report."""

from .benchmark import Benchmark, run_benchmark
from .comparison import Comparison, compare
from .geneval import GenEval
from .scores import Scores
from .sides import search_side
from .t2i_compbench import T2ICompBench

__all__ = [
    "Benchmark",
    "Comparison",
    "GenEval",
    "Scores",
    "T2ICompBench",
    "compare",
    "run_benchmark",
    "search_side",
]
