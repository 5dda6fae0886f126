# Every target makes what it needs first; nothing is installed outside of .venv.
PYTHON ?= python3
BIN := .venv/bin
# One line of each target, for `make help`.
.DEFAULT_GOAL := help
.PHONY: help install demo mini rl test test-engines check bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev,transformers]'
	touch $@

install: .venv/installed ## a virtual environment with the package and its tools

demo: .venv/installed ## solve test problems with the checkpoint that comes with the package
	$(BIN)/apr solve 22 26 31 53 --target 27
	$(BIN)/apr eval --count 30 --out runs/eval/make-demo.jsonl --force

SERIAL := --set demonstrations.telling=serial
EVAL := $(BIN)/apr eval --count 500 --force

mini: .venv/installed ## train threads and serial search from nothing (15 minutes), and compare
	$(BIN)/apr sft recipes/mini.toml --data data/mini-threads --out runs/mini-threads
	$(BIN)/apr sft recipes/mini.toml --data data/mini-serial --out runs/mini-serial $(SERIAL)
	$(EVAL) runs/mini-threads/checkpoint --method apr --out runs/eval/mini-threads.jsonl
	$(EVAL) runs/mini-serial/checkpoint --method serial --out runs/eval/mini-serial.jsonl
	$(BIN)/apr table runs/eval/mini-threads.jsonl runs/eval/mini-serial.jsonl

# From demonstrations that leave 28 % unsolved: supervised training, GRPO on both, and what it changed.
NARROW := recipes/narrow.toml --out runs/narrow
RL_SERIAL := --set checkpoint=runs/narrow-serial/checkpoint --set sampling.method=serial \
	--set grpo.loss.kl=0.01

rl: .venv/installed ## reinforcement learning on threads and on serial search (40 minutes), and compare
	$(BIN)/apr sft $(NARROW)-threads --data data/narrow-threads
	$(BIN)/apr sft $(NARROW)-serial --data data/narrow-serial $(SERIAL)
	$(BIN)/apr grpo recipes/grpo.toml --out runs/grpo-threads-0
	$(BIN)/apr grpo recipes/grpo.toml --out runs/grpo-serial-0 $(RL_SERIAL)
	for run in narrow-threads grpo-threads-0; do \
	  $(EVAL) runs/$$run/checkpoint --method apr --out runs/eval/$$run.jsonl; done
	for run in narrow-serial grpo-serial-0; do \
	  $(EVAL) runs/$$run/checkpoint --method serial --out runs/eval/$$run.jsonl; done
	$(BIN)/apr table $(foreach run,narrow-threads grpo-threads-0 narrow-serial grpo-serial-0,runs/eval/$(run).jsonl)

test: .venv/installed ## the tests that need no GPU, no server and no patience
	$(BIN)/python -m pytest

# Their environments, some 6 GB, are made once, in ~/.cache/apr/engines or in $$APR_ENGINES.
test-engines: .venv/installed ## install real servers, and test against them (minutes, on the CPU)
	$(BIN)/python -m pytest tests/remote -m engines

check: .venv/installed ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed ## the engine beside its peers and the machine
	$(BIN)/python -m benchmarks.engine

clean: ## remove the environment and caches, but no run and no data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
