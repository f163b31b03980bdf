# Each target sets up a virtual environment of its own (.venv) first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DIST ?= dist
# The requirement that brings torch, the tests' second oracle. Its plain name may fetch gigabytes of
# CUDA; name a CPU build where there is one.
TORCH ?= torch

.PHONY: help venv demo test test-slow test-all oracle lint types format bench support wheel clean

help:
	@echo "make demo      decode with the small model that comes with leapjax"
	@echo "make test      the tests that take minutes"
	@echo "make test-all  all tests, with the torch oracle (TORCH=... chooses the build)"
	@echo "make lint      ruff: lint and format check;  make types: pyright"
	@echo "make bench     timings of this machine;  make support: docs/support.md from the tests"

# The core alone, for demo; editable, so it follows the working tree.
$(VENV)/.core: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit("leapjax needs Python 3.11 or newer, not " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[plots]'
	touch $@

# With the development tools; without torch the oracle tests are skipped, and say so.
$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --editable '.[plots,dev]'
	touch $@

$(VENV)/.oracle: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet '$(TORCH)' && \
	  $(BIN)/python -m pip install --quiet --editable '.[oracle]' && touch $@ || \
	  echo "NOTE: torch could not be installed; the tests that compare with it will be skipped"

venv: $(VENV)/.dev

oracle: $(VENV)/.oracle

demo: $(VENV)/.core
	$(BIN)/python scripts/decode.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# What `make test` leaves out: slow tests, and all that compare with torch.
test-slow: oracle
	$(BIN)/python -m pytest -m "(slow or oracle) and not exhaustive"

test-all: oracle
	$(BIN)/python -m pytest -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.core
	$(BIN)/python scripts/benchmark.py

support: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_support.py -m "" --write-support

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(DIST) .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
