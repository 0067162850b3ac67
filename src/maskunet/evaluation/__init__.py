"""Evaluation: generate at scale, judge, run benchmarks, compare with the base model, report."""

from ..sampling.generation import Make, generate, maker
from .benchmark import Benchmark, run_benchmark
from .comparison import Comparison, compare
from .geneval import GenEval
from .scores import Scores
from .sides import search_maker
from .t2i_compbench import T2ICompBench

__all__ = [
    "Benchmark",
    "Comparison",
    "GenEval",
    "Make",
    "Scores",
    "T2ICompBench",
    "compare",
    "generate",
    "maker",
    "run_benchmark",
    "search_maker",
]
