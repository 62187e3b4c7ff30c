# Few verbs. The first use of any of them sets up a virtual environment in $(VENV).
VENV ?= .venv
PYTHON ?= python3
# Pinned, so that two machines run the same arithmetic. Any release from the floor in pyproject.toml on works: make TORCH=torch
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow parity check fix results tables bench train

demo: $(READY)  ## caption drawn pictures with and without mitigation, and score them
	$(BIN)/sightline demo

test: $(READY)  ## the suite
	$(BIN)/python -m pytest

slow: $(READY)  ## what takes longer than the suite may
	$(BIN)/python -m pytest -m slow

parity: $(READY)  ## every reference file: how many figures were compared with the official ones, how many differ
	$(BIN)/python tests/parity

check: $(READY)  ## style, types, and generated tables that are still what the code and the results say
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python benchmarks/tables.py --check

fix: $(READY)  ## mend style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

tables: $(READY)  ## write the tables of README and docs anew from benchmarks/results and the code
	$(BIN)/python benchmarks/tables.py

results: $(READY)  ## measure everything in benchmarks/results anew (about half an hour on 2 cores)
	$(BIN)/python benchmarks/choose.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/honest.py
	$(BIN)/sightline attention val-shifted:5 --method pai:alpha=0.5,gamma=1.5 --out docs/attention.png
	$(MAKE) bench tables

bench: $(READY)  ## what each method costs over plain generate
	$(BIN)/python benchmarks/cost.py --threads 1 --json benchmarks/results/cost-demo-cpu.json
	$(BIN)/python benchmarks/cost.py --shape 130m --threads 1 --new-tokens 16 --json benchmarks/results/cost-130m-cpu.json

train: $(READY)  ## train the demo model from nothing (at most 40 minutes on 2 cores)
	$(BIN)/python -m sightline.demo.train --out build/demo-model

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
