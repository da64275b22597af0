# make sample PROMPT="..."   set up on a fresh machine, then write a 1024-pixel picture
# make test                  set up on a fresh machine, then lint, check types and run the tests (what CI runs)
# `make help` lists the rest. VENV=DIR uses another environment than .venv, PYTHON=EXE another interpreter to create it.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SETUP_FILES := setup.cfg pyproject.toml constraints.txt
WORKERS ?= 2
ARGS ?=

export PROMPT
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help sample setup setup-dev lint types test test-all mutants compare format demo gpu gpu-pack clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

# --- environment -----------------------------------------------------------------------------------------------------
# The environment is made once; the stamps make a second call instant and are redone when a set-up file changes.

$(VENV)/.setup: $(SETUP_FILES)
	@PYTHON="$(PYTHON)" .ci/venv "$(VENV)"
	@echo "installing imagen into $(VENV) (once; a few minutes)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	@echo "installing the tools of development into $(VENV) (once)"
	$(PIP) --editable ".[dev]"
	@touch $@

setup: $(VENV)/.setup  ## install what sampling and training need

setup-dev: $(VENV)/.setup-dev  ## ... and what the tests need

# --- use -------------------------------------------------------------------------------------------------------------

sample: $(VENV)/.setup  ## PROMPT="..." [ARGS="--seed 1 --out DIR ..."]: sample 64 -> 256 -> 1024
	@if [ -z "$$PROMPT" ]; then echo 'make sample: no prompt; write make sample PROMPT="a red circle above a blue square"' >&2; exit 2; fi
	@$(BIN)/python sample.py "$$PROMPT" $(ARGS)

# On CPU cores two processes of one thread each train faster than one of two threads.
TRAIN := $(if $(shell command -v nvidia-smi),$(BIN)/python,OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true $(BIN)/torchrun --nproc_per_node 2) train.py
# Group norms see other statistics in a small window than in the picture that is sampled: the last part is on wider ones.
WIDE := --data.crop 256 --train.batch_size 8 --train.steps 1100 --optim.hold 0 --optim.lr 3e-4 --optim.muon_lr 1e-3

# Every line resumes where it was interrupted.
demo: $(VENV)/.setup-dev  ## reproduce pretrained/shapes from nothing, into runs/shapes (about six hours on two cores with AMX)
	$(BIN)/python -m imagen.cli.pretrain_text --out runs/shapes/t5 --t5.steps 6000
	$(TRAIN) --config configs/shapes/base64.yaml
	for stage in sr256 sr1024; do \
		$(TRAIN) --config configs/shapes/$$stage.yaml && \
		$(TRAIN) --config configs/shapes/$$stage.yaml --run_dir runs/shapes/$$stage-wide \
			--train.init_from runs/shapes/$$stage/model/unet $(WIDE) || exit 1; \
	done
	$(BIN)/python -m imagen.training.compose --base runs/shapes/base64 --sr256 runs/shapes/sr256-wide \
		--sr1024 runs/shapes/sr1024-wide --dtype fp16 --max_shard_size 14MB --presets configs/shapes/presets.yaml \
		--out runs/shapes/model
	$(BIN)/python -m imagen.evaluation alignment --model runs/shapes/model --split heldout

# --- checks ----------------------------------------------------------------------------------------------------------

lint: $(VENV)/.setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || (echo "run: make format" >&2; exit 1)

types: $(VENV)/.setup-dev
	$(BIN)/mypy

test: lint types  ## lint, types and every test but the slow ones; under 10 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(ARGS)

test-all: lint types  ## the slow tests as well
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --timeout 1800 $(ARGS)

mutants: $(VENV)/.setup-dev  ## apply each stored mutation to a copy of the tree; the tests must catch every one
	$(BIN)/python -m tests.mutants.run --workers $(WORKERS) $(ARGS)

AFTER ?= .
compare: $(VENV)/.setup-dev  ## BEFORE=COMMIT [AFTER=COMMIT] [ARGS=--quick]: show that the working tree, or AFTER, gives BEFORE's numbers
	@if [ -z "$(BEFORE)" ]; then echo 'make compare: no commit to compare with; write make compare BEFORE=main' >&2; exit 2; fi
	@$(BIN)/python -m tests.compare_commits "$(BEFORE)" "$(AFTER)" $(ARGS)

# On a machine that brings its own Python: make gpu PYTHON=python3, without an environment of this repository.
GPU_PYTHON := $(or $(PYTHON),$(BIN)/python)
gpu: $(if $(PYTHON),,$(VENV)/.setup-dev)  ## [PYTHON=EXE] [ARGS="--only NAME,... --device cpu --quick"]: speed beside others', benchmarks/README.md
	$(GPU_PYTHON) benchmarks/gpu.py $(ARGS)

gpu-pack: $(VENV)/.setup-dev  ## [ARGS=--without-peers]: what must travel to a bare machine with a card, with its MiB; fetches .wheels/
	$(BIN)/python -m benchmarks.speed.pack $(ARGS)

format: $(VENV)/.setup-dev  ## sort imports, mend what can be mended, format
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

clean:  ## remove the environment and the caches
	rm -rf .venv .wheels .mypy_cache .ruff_cache .pytest_cache imagen.egg-info
