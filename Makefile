# Two commands are enough: `make setup`, then `make lab` (or `.venv/bin/infra-lab ...`).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS ?= test

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
	$(BIN)/jupyter lab

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: setup lint
	$(BIN)/infra-lab fetch smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto  # one thread a worker: as many workers as cores

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
