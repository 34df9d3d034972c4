# Everything runs in .venv, which scripts/bootstrap.py makes and keeps in step with the lock file.
# `make test PYTHON=python3.13` uses another Python than `python3`.
PYTHON ?= python3
BIN := .venv/bin
# CI names a file here that gets pytest's exit code when tests fail: make itself turns every failure into 2.
PYTEST_STATUS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check lock bench clean venv

help: ## list these targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1: \2/p' Makefile

demo: venv ## set up, then run the main job on llama.cpp servers with tiny models
	@$(BIN)/maxwell demo

test: check ## set up, then lint, type check and run every test
	@$(BIN)/python -m pytest $(if $(PYTEST_STATUS),|| echo $$? > '$(PYTEST_STATUS)')

check: venv ## lint, check the format, check the types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

lock: venv ## write requirements/dev.txt anew; LOCK=--upgrade takes newer versions
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --extra local --group dev $(LOCK) \
		--output-file requirements/dev.txt pyproject.toml

bench: venv ## run the benchmarks
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean: ## remove what these targets made
	@rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@$(PYTHON) scripts/bootstrap.py
