# Everything runs in .venv, which scripts/bootstrap.py makes and keeps in step with the lock file.
# `make test PYTHON=python3.13` uses another Python than `python3`.
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-bench
VLLM := .venv-vllm
# A Python that has vLLM already, as a path; where none is named, .venv-vllm is made.
VLLM_PYTHON ?=
# CI names a file here that gets pytest's exit code when tests fail: make itself turns every failure into 2.
PYTEST_STATUS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-vllm check lock lock-vllm bench bench-peers sim clean venv

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1: \2/p' Makefile

demo: venv ## set up, then run the main job on llama.cpp servers with tiny models
	@$(BIN)/maxwell demo

test: check ## set up, then lint, type check and run every test
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(if $(PYTEST_STATUS),|| echo $$? > '$(PYTEST_STATUS)')

test-vllm: venv $(if $(VLLM_PYTHON),,$(VLLM)/ready) ## run tests/vllm against a real vLLM: ten minutes, at first 3.4 GB
	@VLLM_PYTHON='$(abspath $(or $(VLLM_PYTHON),$(VLLM)/bin/python))' $(BIN)/python -m pytest --timeout 1200 tests/vllm

check: venv ## lint, check the format, check the types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' $(LOCK)

lock: venv ## write requirements/*.txt anew; LOCK=--upgrade takes newer versions
	@$(COMPILE) --extra local --extra prices --group dev --output-file requirements/dev.txt pyproject.toml
	@$(COMPILE) --group bench --output-file requirements/bench.txt pyproject.toml

lock-vllm: venv ## write requirements/vllm.txt anew, for Linux on x86-64 and Python 3.11
	@$(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock-vllm' $(LOCK) \
		$(patsubst %,--no-emit-package %,torchvision torchaudio torchcodec) \
		--output-file requirements/vllm.txt requirements/vllm.in

bench: venv ## run the benchmarks; beside their peers after `make bench-peers`
	@python=$(BIN)/python; if [ -x $(PEERS)/bin/python ]; then python=$(PEERS)/bin/python; fi; \
	for file in benchmarks/bench_*.py; do echo "== $$file"; $$python "$$file" || exit 1; done

sim: ## run the scheduling simulator in .venv-bench; S=S3 for one scenario
	@test -x $(PEERS)/bin/python || { echo "run make bench-peers first"; exit 1; }
	@$(PEERS)/bin/python -m benchmarks.scheduling $(S)

bench-peers: venv ## make .venv-bench: Maxwell beside the libraries it is compared with
	@$(BIN)/python -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/bench.txt
	@$(PEERS)/bin/python -m pip install --quiet --no-deps --no-index --no-build-isolation --editable .

$(VLLM)/ready: requirements/vllm.txt | venv
	@echo "making $(VLLM): vLLM for the CPU, 3.4 GB, some minutes"
	@$(BIN)/python -m venv --clear $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/vllm.txt
	@touch $@

clean: ## remove what these targets made
	@rm -rf .venv $(PEERS) $(VLLM) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@$(PYTHON) scripts/bootstrap.py
