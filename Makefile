# One virtual environment, made on first use; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small U-Nets on a CPU run several times faster when glibc keeps freed memory (see maskunet/allocator.py).
export MALLOC_MMAP_THRESHOLD_ := 8589934592
export MALLOC_TRIM_THRESHOLD_ := 17179869184
export MALLOC_TOP_PAD_ := 268435456

.PHONY: demo test lint format docs bench clean

demo: $(VENV)/.installed
	$(BIN)/maskunet demo

# Two processes of one thread each: most tests are too small for two threads.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Links only; the blocks of code on the pages are run by `make test`, in tests/docs.
docs:
	$(PYTHON) docs/check_links.py

# Half an hour on two quiet cores. Other sizes: python -m benchmarks.masked_forward --models sd21 sdxl --batches 2 8.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.masked_layers
	$(BIN)/python -m benchmarks.batched_layers
	$(BIN)/python -m benchmarks.masked_forward --models shapes sd15
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.search_iteration

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo
