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
	$(BIN)/python examples/demo.py

mini: .venv/installed ## train threads and serial search from nothing (15 minutes), and compare
	$(BIN)/python examples/mini.py

test: .venv/installed ## the tests that need no GPU, no server and no patience
	$(BIN)/python -m pytest -m "not slow and not gpu and not engines"

check: .venv/installed ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed ## decoding throughput beside transformers
	$(BIN)/python benchmarks/engine.py

clean: ## remove the environment and caches, but no run and no data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
