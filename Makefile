# make demo    from a fresh checkout to images, with no account and no GPU
# make test    the whole test suite
# make dev     the Dagster UI on the same state
# make clean   stop what was started and remove the state (images, too)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test dev clean install check lint types defs docs constraints

demo: $(STAMP)
	$(BIN)/raynest demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not ray and not e2e" -n 2 --dist loadfile --cov --cov-report= --cov-fail-under=0
	$(BIN)/python -m pytest -m "ray or e2e" --durations=15 --cov --cov-append --cov-report=term:skip-covered

dev: $(STAMP)
	$(BIN)/raynest dev

# Everything that CI checks beside the tests.
check: lint types defs docs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

defs: $(STAMP)
	$(BIN)/dg check defs

# Fails when docs/settings.md or docs/status.md is not what the code says.
docs: $(STAMP)
	$(BIN)/python -m raynest_pipeline.docs --check

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "raynest needs Python 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing into $(VENV): about 2 GB, a few minutes."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local,dev]'
	touch $@

# Renew the lock after a change of pyproject.toml: install without it, then write down what came.
constraints: pyproject.toml
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[local,dev]'
	build/lock/bin/python -m pip freeze --exclude raynest | sed "s|+cpu$$||" > constraints.txt
	rm -rf build/lock

# Removes folders that raynest made, and only those; the sandbox first ends what it started. The record of a
# real chain that is up is not thrown away.
clean:
	@if grep -lqs '"up": true' .raynest/chains/alibaba/*/wanted.json; then \
	  echo "A chain on Alibaba Cloud is up: run raynest down first."; exit 1; fi
	if test -x $(BIN)/raynest; then $(BIN)/raynest sandbox stop; fi
	rm -rf $(CURDIR)/.raynest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
