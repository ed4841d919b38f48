# Two commands do everything: `make demo` and `make test`. All happens in $(VENV), made here on first use.
PYTHON ?= python3.11
VENV ?= .venv
BIN ?= $(VENV)/bin
WORKERS ?= 2
# Byte code is made when a module is first imported: compiling 2 GB of packages takes as long as fetching them.
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Hundreds of processes start in the tests; without byte code each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# Where optional larger data sets lie; tests that need them are skipped, with a reason, where they do not.
export CONVEXNN_DATA ?= $(abspath ../shared/data)

.PHONY: demo test lint format clean bench bench-full growth bench-path bench-floor bench-out-of-core bench-polynomial bench-mnist bench-gpu mutants

demo: $(VENV)/demo.stamp  ## train on real data, certify, prune, compare solvers (output/)
	$(BIN)/python examples/demo.py

# A thread each: two workers whose linear algebra takes both cores would wait for each other.
test: $(VENV)/dev.stamp  ## the whole suite with branch coverage, in $(WORKERS) processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp  ## style, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory $(VENV)/pyright.stamp
	$(BIN)/lint-imports

# Unlike mypy, pyright keeps nothing between runs: it runs again when a file or a folder has changed.
$(VENV)/pyright.stamp: $(VENV)/dev.stamp $(shell find convexnn_models solvers tests examples benchmarks \
		-name __pycache__ -prune -o -type d -print -o -name '*.py' -print)
	$(BIN)/pyright --threads 2 --pythonpath $(BIN)/python
	@touch $@

format: $(VENV)/dev.stamp  ## apply what lint's style checks ask for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# They go on where they were stopped; `make clean` or another --out starts anew.
bench: $(VENV)/bench.stamp  ## side by side with other packages: at most 45 minutes on 2 cores
	$(BIN)/python -m benchmarks.run --lanes 2 --minutes 43 --out output/bench.json
	$(BIN)/python -m benchmarks.report output/bench.json --folder benchmarks

bench-full: $(VENV)/bench.stamp  ## the whole grid, which may take days
	$(BIN)/python -m benchmarks.run --full --every-reg --out output/bench-full.json
	$(BIN)/python -m benchmarks.report output/bench-full.json --folder benchmarks/full

growth: $(VENV)/demo.stamp  ## time and memory against samples, features and gates: about ten minutes
	$(BIN)/python -m benchmarks.growth --minutes 30 --out output --report benchmarks/growth.md

bench-path: $(VENV)/demo.stamp  ## a regularisation path beside its smallest regularisation alone
	$(BIN)/python -m benchmarks.path_cost

bench-floor: $(VENV)/demo.stamp  ## where the time goes, and what the arithmetic alone would take
	$(BIN)/python -m benchmarks.floor

bench-out-of-core: $(VENV)/bench.stamp  ## 1 GB of features on disk, 600 MB of memory
	$(BIN)/python -m benchmarks.out_of_core

bench-polynomial: $(VENV)/demo.stamp  ## solve_polynomial beside Clarabel and SCS: about 35 minutes
	$(BIN)/python -m benchmarks.polynomial --widths 50 100 200 --samples 1000 --cap 300 --report benchmarks/polynomial.md

bench-mnist: $(VENV)/bench.stamp  ## 10 000 digits, 300 gates, 10 outputs beside scnn, SGD and Adam: minutes on 2 cores
	$(BIN)/python examples/mnist.py --samples 10000 --gates 300 --reg 1e-3 --tol 0.1

bench-gpu: $(VENV)/bench.stamp  ## answers and rates of a CUDA device, beside scnn there; needs a CUDA build of torch
	$(BIN)/python -m benchmarks.gpu --device cuda

mutants: $(VENV)/mutants.stamp  ## do the tests notice small faults? at most 30 minutes on 2 cores
	$(BIN)/python -m pytest -q tests/test_mutants.py
	$(BIN)/python tests/mutants.py $(MUTANTS_ARGS)

clean:  ## forget environment, caches and output
	rm -rf $(VENV) output .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: once the pinned CPU build is there, nothing else pulls another one.
$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/mutants.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[mutants]'
	touch $@ $(VENV)/demo.stamp

# scnn's and celer's declared dependencies are not needed here; scnn's would replace the CPU build of torch.
$(VENV)/bench.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) torch
	$(INSTALL) --editable '.[bench]'
	$(INSTALL) --no-deps pyscnn linalg-backends celer
	touch $@ $(VENV)/demo.stamp
