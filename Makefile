# Each target makes the environment that it needs. Needs Python >= 3.11, git and make.
#   make pendulum   installs, then trains the main example
#   make test       installs, then runs the whole test suite
#   make notebooks  installs, then executes colab/*.py into colab/*.ipynb, quick ones
#   make check      lint, format, types and the fast tests: what CI runs first
#   make docs       installs, then builds the documentation site in build/docs

VENV ?= .venv
# The first interpreter that is new enough; PYTHON=... takes another one.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := $(VENV)/bin

.PHONY: pendulum notebooks test test-fast check lint types docs lock clean

pendulum: $(VENV)/.installed
	$(BIN)/python -m experiments.train --config=pendulum

notebooks: $(VENV)/.installed-test
	VHP_QUICK=1 $(BIN)/python -m experiments.notebooks

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow"

check: lint types test-fast

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	rm -rf build/docs docs/generated
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going \
		--conf-dir docs . build/docs
	@echo "wrote build/docs/index.html"

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,notebooks]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

# Newest versions of everything, for Python 3.11 and later. Needs uv.
lock:
	uv pip compile pyproject.toml --extra test --extra notebooks --extra docs \
		--universal --python-version 3.11 --no-header --no-annotate --upgrade \
		--output-file constraints.txt

clean:
	rm -rf $(VENV)
