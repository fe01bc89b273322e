# make demo | test | notebooks | lint | format | bench | clean      (needs Python 3.11 to 3.13 and make; nothing else)
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first interpreter that runs and is of a supported version; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help setup demo test notebooks slow lint format bench clean

help:
	@sed -n '1p' Makefile

setup: $(INSTALLED)

# Installs again only when what is declared has changed.
$(INSTALLED): pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "mtlcar needs Python 3.11, 3.12 or 3.13 and found none. Install one, or run: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "mtlcar needs Python 3.11 to 3.13; $(PYTHON) is another version."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Could not create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	@echo "Installing PyTorch and the rest into $(VENV): about 5 GB, some minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/mtlcar train -m experiment=demo
	$(BIN)/mtlcar report runs/demo
	@echo "Open runs/demo/report/report.html"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

notebooks: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m notebook

slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# make bench CARS=folder WEIGHTS=file: the main job beside a plain PyTorch loop.
bench: setup
	$(BIN)/python benchmarks/main_job.py "$(CARS)" "$(WEIGHTS)"

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
