# Everything a user or a contributor runs. "make help" lists it.

PYTHON ?= python3
VENV ?= .venv
# Processes that run tests, as pytest-xdist takes it: a number, or auto for one per core.
JOBS ?= auto
# Further options of pytest (make test ARGS="-k ranking").
ARGS ?=

VENV_PYTHON = $(VENV)/bin/python

export VENV

.DEFAULT_GOAL := help
.PHONY: help install demo test test-browser coverage docs lint format clean clean-env

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18
	@echo
	@echo "  PYTHON=python3.12 selects the Python of a new environment, VENV=folder its place,"
	@echo "  ARGS=\"-k ranking\" goes to pytest. More: docs/installation.md"

install:  ## Create the environment and install vitdown; quick when that is done
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found" >&2; \
		echo "remedy: install Python 3.10 to 3.13, or name yours: make install PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) tools/install.py

demo: install  ## Train, evaluate and show a small re-ID model on the embedded data
	@$(VENV_PYTHON) tools/demo.py

test: install  ## Run the whole test suite
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(ARGS)

test-browser: install  ## Run the tests that need Chromium and chromedriver
	$(VENV_PYTHON) -m pytest -m browser tests/browser $(ARGS)

coverage: install  ## Run the test suite and show which lines it reaches, in htmlcov/ too
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile \
		--cov --cov-report=term --cov-report=html $(ARGS)

docs: install  ## Build the documentation site into site/
	$(VENV_PYTHON) -m mkdocs build --strict

lint: install  ## Check style, formatting, import contracts and the types of the public modules
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())'
	@$(VENV_PYTHON) -m mypy

format: install  ## Rewrite the code in the common format
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

clean:  ## Remove caches and build results, keep the environment
	rm -rf build dist site htmlcov .coverage* *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find vitdown tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env:  ## Remove the environment
	@test ! -e "$(VENV)" || test -f "$(VENV)/pyvenv.cfg" || { echo "error: $(VENV) is no virtual environment" >&2; exit 1; }
	rm -rf "$(VENV)"
