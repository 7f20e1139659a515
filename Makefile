# make demo | test | test-all | lint | bench | docs | gpu: each creates the environment it needs (.venv).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed
OUT ?= out

.PHONY: demo test test-all lint bench docs gpu clean env

env: $(STAMP)

# The package and what the demo needs; then all that tests, checks and documentation need.
$(RUNS): pyproject.toml constraints.txt setup.py $(shell find csrc -type f)
	test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install -q -c constraints.txt "setuptools>=70" wheel ninja pybind11 numpy torch
	$(RUN)python -m pip install -q -c constraints.txt --no-build-isolation -e ".[demo]"
	touch $@

# Not -e again, which would compile again: what is installed serves, and its extras are added.
$(STAMP): $(RUNS)
	$(RUN)python -m pip install -q -c constraints.txt "pfgm-fast[test,dev,docs,diffusers]"
	touch $@

demo: $(RUNS)
	$(RUN)pfgm-fast demo --out $(OUT)/demo

lint: $(STAMP)
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	PATH="$(abspath $(RUN)):$$PATH" tools/format_csrc.sh --check

# Two workers of one thread each: more threads than cores would wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2 --dist worksteal

# The same, and what takes long: every kernel and configuration compiled for every architecture.
test-all: export PFGM_FAST_COMPILE_ALL = 1
test-all: test

bench: $(STAMP)
	PFGM_FAST_BENCH_OUT=$(OUT)/bench $(RUN)python -m pytest benchmarks --benchmark-only -o addopts=

# The site, into out/site.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN)python -m mkdocs build --strict

# On a machine with a GPU: its own Python (PyTorch, Triton, nvcc), no network, no environment. See tools/gpu.sh.
gpu:
	PYTHON=$(PYTHON) OUT=$(OUT)/gpu tools/gpu.sh

clean:
	rm -rf build dist *.egg-info $(VENV) pfgm_fast/*.so
