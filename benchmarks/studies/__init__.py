"""The paper's experiments on the bundled model: `python -m benchmarks.studies table1|ablations|search|amortised`."""
