# fluvial: everything that a developer or a curious physicist runs. Needs Python 3.11-3.13 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= demo/runs
SOURCES := src tests benchmarks hatch_build.py
INSTALLED := pyproject.toml constraints.txt hatch_build.py $(wildcard src/fluvial/core/kernels/*.[ch])

.PHONY: help demo test test-slurm check format docs-figures clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, simulate 100,000 black-hole mergers, fit, check, report"
	@echo "make test    all tests (about a few minutes)"
	@echo "make test-slurm  jobs of a cluster, on a real SLURM that it starts here (as root, with slurm-wlm and munge installed)"
	@echo "make check   format, lint, types, layers"
	@echo "make format  reformat the sources"
	@echo "make clean   remove the environment and everything made by the demo"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and "fluvial needs Python 3.11 to 3.13; found %d.%d. Try: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.user: $(VENV)/.python $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.python $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user
	@mkdir -p demo
	$(BIN)/fluvial simulate binaries --rows 100000 --seed 1 --out demo/mergers.parquet
	cp studies/binaries-demo.toml demo/binaries.toml
	$(BIN)/fluvial fit demo/binaries.toml --runs $(RUNS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-slurm: $(VENV)/.dev
	$(BIN)/python -m pytest -m slurm -rs tests/slurm

check: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis
