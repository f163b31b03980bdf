# Each target sets up a virtual environment of its own (.venv) first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# An editable install warns of folders named like the package; here the working tree is meant to win.
EDITABLE = PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --editable
DIST ?= dist
# The requirement that brings torch, the tests' second oracle. Its plain name may fetch gigabytes of
# CUDA; name a CPU build where there is one.
TORCH ?= torch

.PHONY: help venv demo test test-goldens test-faults test-docs test-slow test-exhaustive tpu test-tpu
.PHONY: test-all oracle extras lint types format bench support wheel clean docs docs-serve docs-version notebooks

help:
	@echo "make demo      decode with the two small models that come with leapjax"
	@echo "make test      the tests that take minutes"
	@echo "make test-goldens  those of the goldens, compiled as users compile"
	@echo "make test-faults   seeded faults, each of which make test must notice"
	@echo "make test-all  all tests, with the torch oracle (TORCH=... chooses the build), the TPU compiler,"
	@echo "               and a browser if a Chromium is installed"
	@echo "make lint      ruff: lint and format check;  make types: pyright"
	@echo "make docs      the documentation site, in site/;  make docs-serve: the same, shown while you write"
	@echo "make notebooks docs/notebooks executed, their outputs stored"
	@echo "make bench     timings of this machine;  make support: docs/support.md from the tests"

# The core alone, for demo; editable, so it follows the working tree.
$(VENV)/.core: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit("leapjax needs Python 3.11 or newer, not " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing jax and leapjax into $(VENV); this takes a minute or two, once"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(EDITABLE) '.[plots]'
	touch $@

# With the development tools; without torch the oracle tests are skipped, and say so.
$(VENV)/.dev: $(VENV)/.core
	$(EDITABLE) '.[plots,dev]'
	touch $@

$(VENV)/.oracle: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet '$(TORCH)' && \
	  $(EDITABLE) '.[oracle]' && touch $@ || \
	  echo "NOTE: torch could not be installed; the tests that compare with it will be skipped"

# What some tests need besides: the evaluation harness, a browser's driver, Ray, mkdocs, twine. They
# skip, and say so, without them (and without a Chromium on the machine).
$(VENV)/.extras: $(VENV)/.oracle
	$(EDITABLE) '.[eval,browser,ray,gcs,docs]' build twine gcp-storage-emulator && touch $@ || \
	  echo "NOTE: lm-eval, playwright, ray, gcsfs, mkdocs or twine could not be installed; their tests will be skipped"

venv: $(VENV)/.dev

oracle: $(VENV)/.oracle

extras: $(VENV)/.oracle $(VENV)/.extras

demo: $(VENV)/.core
	$(BIN)/python scripts/decode.py
	$(BIN)/python scripts/decode.py --model dependency

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# The goldens, and what is read in compiled programs, at the optimisation level that users have: the
# other tests compile quickly instead (tests/conftest.py).
CACHED = tests/decoding/test_cached.py
test-goldens: $(VENV)/.dev
	LEAPJAX_TEST_OPTIMISED=1 $(BIN)/python -m pytest --dist worksteal -m "not tpu_compile and not oracle" \
	  tests/decoding/test_golden.py tests/decoding/test_golden_blocks.py tests/converters/test_golden.py \
	  $(CACHED)::test_the_loop_does_not_copy_the_cache \
	  $(CACHED)::test_dual_window_cost_does_not_grow_with_the_canvas \
	  $(CACHED)::test_a_pass_without_a_refresh_pays_for_none \
	  tests/decoding/test_loop.py::test_compiled_loop tests/native/test_batch_invariance.py $(PYTEST)

# Are faults that somebody seeds noticed? Half an hour.
test-faults: $(VENV)/.dev
	$(BIN)/python tests/faults/run.py

# What `make test` leaves out: the pages' commands; slow tests, and all that compare with torch; every
# pair.
test-docs: extras
	$(BIN)/python -m pytest -m slow --dist worksteal tests/test_docs_run.py $(PYTEST)

test-slow: extras
	$(BIN)/python -m pytest -m "(slow or oracle) and not exhaustive and not tpu_compile" \
	  --ignore tests/test_docs_run.py $(PYTEST)

test-exhaustive: extras
	$(BIN)/python -m pytest -m exhaustive --dist worksteal $(PYTEST)

# The real TPU compiler, for slices that are not attached. An environment of its own, because an
# installed libtpu looks for a TPU wherever JAX starts.
tpu:
	test -x $(VENV)-tpu/bin/python || $(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --editable '.[plots,dev,tpu]'

test-tpu: tpu
	$(VENV)-tpu/bin/python -m pytest -m tpu_compile -n 0 $(PYTEST)

test-all: extras
	$(BIN)/python -m pytest -m "not tpu_compile" $(PYTEST)
	$(MAKE) test-tpu

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
	$(BIN)/python -m pytest tests/test_support.py -n 0 -m "" --write-support

notebooks: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_notebooks.py -n 0 -m "" --write-notebooks

# Strict: a page that is in no menu, a link or an anchor that leads nowhere, ends the build. mkdocs
# itself needs no network.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
$(VENV)/.docs: $(VENV)/.core
	$(EDITABLE) '.[plots,docs]'
	touch $@

docs: $(VENV)/.docs
	$(MKDOCS) build --strict

docs-serve: $(VENV)/.docs
	$(MKDOCS) serve

# The site of a tag, beside those of other versions, as a commit on the branch gh-pages:
# git checkout v0.2.0 && make docs-version VERSION=0.2
docs-version: $(VENV)/.docs
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mike deploy --update-aliases $(VERSION) latest

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(DIST) .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
