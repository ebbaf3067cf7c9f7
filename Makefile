# Each target is one command from a fresh clone: it makes the environment it needs, .venv, on first use.

PYTHON ?= python3
BIN := .venv/bin
# LitData needs a torchvision, and each of these fits one PyTorch.
PEERS := 'torchvision==0.28.*' 'megatron-core==0.16.*' 'litdata==0.2.*'
PEERS_PIP := .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check
INTEROP_PIP := .venv-interop/bin/python -m pip install --quiet --disable-pip-version-check
# A Python that was named is meant; the default takes whatever .venv there is.
NAMED := $(if $(filter file,$(origin PYTHON)),,--same-python)

# Two files of tests at a time; the tests of one file share what they have set up.
TWO_CORES := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-interop lint format bench bench-quick bench-prepare bench-peers bench-report soak wheel clean environment-demo environment-dev

help: ## show this list
	@echo "make TARGET [PYTHON=python3.12], where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: environment-demo ## train on real text, kill, resume, compare: under five minutes on two cores
	$(BIN)/python examples/demo.py

test: environment-dev ## all tests
	$(BIN)/python -m pytest $(TWO_CORES)

test-interop: .venv-interop/complete ## stores written here open in Megatron's own code, and its stores here
	.venv-interop/bin/python tools/check_megatron.py

lint: environment-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: environment-dev ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: environment-dev ## speed, against Grain's own pipeline in the same run: 15 minutes, 8 GB of disk
	$(BIN)/python benchmarks/bench.py $(if $(ONLY),--only "$(ONLY)")

bench-quick: environment-dev ## the ratios alone, in under a minute; fails where one falls far below what is asked
	$(BIN)/python benchmarks/bench.py --quick

bench-prepare: environment-dev ## prepare against the tokenizer alone and against copying, and its memory; three minutes
	$(BIN)/python benchmarks/preparing.py

bench-peers: .venv-peers/complete ## what a user would pick instead, in an environment of its own
	.venv-peers/bin/python benchmarks/peers.py

bench-report: environment-dev ## put the figures of the last two into docs/performance.md
	$(BIN)/python benchmarks/report.py

soak: environment-dev ## load for minutes, with kills at random moments
	$(BIN)/python benchmarks/soak.py

wheel: environment-dev ## build the wheel, look inside, install it, load a batch with it
	$(BIN)/python tools/check_wheel.py

clean: ## remove all that these targets have made
	rm -rf .venv .venv-interop .venv-peers .venv.lock .venv.log .demo .bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# PyTorch's CPU build where the package index offers it: the other one takes gigabytes.
.venv-interop/complete: pyproject.toml
	@echo "Setting up .venv-interop for PyTorch and megatron-core, once; it takes about five minutes, and 2 GB."
	$(PYTHON) -m venv .venv-interop
	$(INTEROP_PIP) --editable '.[tokenizers]'
	$(INTEROP_PIP) 'torch==2.13.0+cpu' || $(INTEROP_PIP) torch
	$(INTEROP_PIP) 'megatron-core>=0.16'
	touch $@

.venv-peers/complete: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	$(PEERS_PIP) --editable . 'torch==2.13.0+cpu' $(PEERS) || $(PEERS_PIP) --editable . torch $(PEERS)
	$(PEERS_PIP) --editable . 'mosaicml-streaming==0.13.*' $(PEERS) \
		|| echo "Mosaic's StreamingDataset cannot be installed here; it is left out."
	touch $@

environment-demo environment-dev:
	@$(PYTHON) tools/environment.py $(@:environment-%=%) $(NAMED)
