# `make lab` is all that a learner needs; `make setup` makes .venv for the rest (`.venv/bin/infra-lab ...`).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS ?= test
LESSONS = $(wildcard labs/*.ipynb labs/[0-9]*/*.ipynb)

.PHONY: setup lab test lint format clean

setup: $(VENV)/.ready-$(EXTRAS)

# torch goes first and pinned: anything that depends on it must find it installed.
$(VENV)/.ready-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip setuptools -c constraints.txt
	$(BIN)/pip install -q torch -c constraints.txt
	$(BIN)/pip install -q -e '.[$*]' -c constraints.txt
	touch $@

lab:
	$(MAKE) setup EXTRAS=lab
	$(BIN)/infra-lab fetch smollm2-135m || echo "Going on with the bundled model, tiny."
	$(BIN)/infra-lab lab

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One thread a worker: as many workers as cores. The lessons are run cell by cell and compared with their stored outputs.
test: setup lint
	$(BIN)/infra-lab fetch smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
	INFRA_LAB_PROGRESS=$$(mktemp -d)/progress.json $(BIN)/python -m pytest -n auto --dist loadfile --nbval $(LESSONS)
	$(BIN)/infra-lab lessons check
	$(BIN)/infra-lab lessons toc --check
	$(BIN)/infra-lab exercises build --check
	$(BIN)/infra-lab claims --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
