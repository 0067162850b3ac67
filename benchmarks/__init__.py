"""Benchmarks and studies that measure the library; they live outside the wheel.

Each module has a command, `python -m benchmarks.NAME --help`; the paper's studies are
`python -m benchmarks.studies --help`. Records go to docs/results: one NAME.json and one table NAME.md each.
"""
