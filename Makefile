# Every target makes what it needs first; nothing is installed outside of .venv.
PYTHON ?= python3
BIN := .venv/bin
# One line of each target, for `make help`.
.DEFAULT_GOAL := help
.PHONY: help install demo mini test check bench clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev,transformers]'
	touch $@

install: .venv/installed ## a virtual environment with the package and its tools

demo: .venv/installed ## solve test problems with the checkpoint that comes with the package
	$(BIN)/apr solve 26 9 2 3 --target 73
	$(BIN)/apr eval --count 30 --force

SERIAL := --set demonstrations.telling=serial
EVAL := $(BIN)/apr eval --count 500 --force

mini: .venv/installed ## train threads and serial search from nothing (15 minutes), and compare
	$(BIN)/apr sft recipes/mini.toml --data data/mini-threads --out runs/mini-threads
	$(BIN)/apr sft recipes/mini.toml --data data/mini-serial --out runs/mini-serial $(SERIAL)
	$(EVAL) runs/mini-threads/checkpoint --method apr --out runs/eval/mini-threads.jsonl
	$(EVAL) runs/mini-serial/checkpoint --method serial --out runs/eval/mini-serial.jsonl
	$(BIN)/apr table runs/eval/mini-threads.jsonl runs/eval/mini-serial.jsonl

test: .venv/installed ## the tests that need no GPU, no server and no patience
	$(BIN)/python -m pytest

check: .venv/installed ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed ## decoding throughput beside transformers
	$(BIN)/python benchmarks/engine.py

clean: ## remove the environment and caches, but no run and no data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
