# Every target sets up what it needs. `make demo` and `make test` are all a newcomer has to know.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench rigs clean

help:  ## Show the targets.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

# What a device needs: no torch, no compiler.
$(VENV)/.device: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

# What fitting from torch weights, testing and linting need besides.
$(VENV)/.develop: $(VENV)/.device
	$(PIP) -e '.[fit,onnxruntime,dev]'
	@touch $@

install: $(VENV)/.develop  ## Make .venv with the project and all it takes to fit and to test.

demo: $(VENV)/.device  ## Fit on the synthetic line, run the daemon on two cameras, show what came of it.
	$(BIN)/edge demo --out demo-out $(ARGS)

test: $(VENV)/.develop  ## Run the tests.
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.develop  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.develop  ## Put the style right.
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/.develop  ## Measure start-up, wire and pipeline on this machine.
	$(BIN)/edge bench start-up
	$(BIN)/edge bench wire
	$(BIN)/edge bench pipeline

rigs:  ## Install the system packages that the tests against real servers need (Debian; root).
	./tests/rigs/install.sh

clean:  ## Remove what the targets made.
	rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
