# One task runner: the same commands for people and for CI. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help fast test-fast up test test-vllm check bench bench-exchange bench-gateway bench-place bench-power bench-drill bench-calibrate bench-perf chaos-exchange lock clean

PYTHON ?= python3
ARGS ?=
SOAK ?= 60
BIN := .venv/bin
# Where packages come from is pip's own configuration; nothing here names a host.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: .venv/.run-ready ## Start the grid in the foreground; ARGS="--grid examples/existing-server.toml" for another
	@exec $(BIN)/tokenworks up $(ARGS)

fast: build/fast/.done ## Compile the request path with mypyc (needs a C compiler); then: PYTHONPATH=build/fast make up

test-fast: build/fast/.done ## The tests of the request path and of the ledger on the compiled modules
	@PYTHONPATH=build/fast $(BIN)/python -m pytest tests/unit/core/test_core_steps*.py tests/unit/core/test_core_post.py \
		tests/unit/engine tests/unit/exchange tests/unit/agents tests/integration/engine tests/integration/agents \
		--ignore tests/unit/exchange/test_exchange_desk.py --ignore tests/unit/exchange/test_exchange_desk_prices.py \
		$(ARGS)

test: check ## Linters, then all tests; ARGS are for pytest
	@echo "model: fetching it unless it is there"
	@$(BIN)/tokenworks model pull
	@start=$$(date +%s%N); \
	$(BIN)/python -m pytest $(ARGS); \
	if [[ "$${TOKENWORKS_RECORD:-}" == 1 ]]; then \
		ms=$$(( ($$(date +%s%N) - start) / 1000000 )); \
		$(BIN)/python -m bench.results_file first_token "test_s=$$((ms / 1000)).$$(printf %03d $$((ms % 1000)))"; \
	fi

check: .venv/.dev-ready ## Format, lint, types and the floors, without running anything
	@echo "check: ruff format";  $(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@echo "check: ruff";         $(BIN)/ruff check --quiet .
	@echo "check: mypy";         $(BIN)/mypy --no-error-summary
	@echo "check: floors";       $(BIN)/lint-imports

test-vllm: .venv/.dev-ready ## Run the adapter against real vLLM on this processor; installs it (3.3 GB) in the user's cache
	@$(BIN)/tokenworks model pull
	@$(BIN)/python -m tests.vllm_real

bench: .venv/.dev-ready ## Measure, and merge the figures into bench/results/
	@$(BIN)/python -m bench $(ARGS)

bench-exchange: build/fast/.done ## Measure the exchange: holds, settlements, recovery, proofs
	@PYTHONPATH=build/fast $(BIN)/python -m bench exchange

bench-gateway: build/fast/.done ## Measure the gateway beside its peers, which it installs in the user's cache; SOAK=600 for ten minutes
	@PYTHONPATH=$(CURDIR)/build/fast $(BIN)/python -m bench.gateway --soak $(SOAK) $(ARGS)

bench-place: .venv/.dev-ready ## Measure placement: 200 replicas onto 1,000 devices
	@$(BIN)/python -m bench.place

bench-calibrate: .venv/.dev-ready ## Calibrate the embedded engine; how far off it is at 1, 4 and 16 streams (6 minutes)
	@$(BIN)/python -m bench.calibrate

bench-perf: .venv/.dev-ready ## Refit the performance model on half of the measured tables, judge it on the rest, ship it
	@$(BIN)/python -m bench.perf

bench-power: .venv/.dev-ready ## Measure power and site: signals of 18 zones over 4 years, an hour of a 4 MW site
	@$(BIN)/python -m bench.power $(ARGS)
	@$(BIN)/python -m bench.attribution

bench-drill: .venv/.dev-ready ## Play a grid event on the embedded grid under load (a minute and a half)
	@$(BIN)/python -m bench.drill

chaos-exchange: .venv/.dev-ready ## 200 rounds of kill -9 and pauses, on SQLite and on PostgreSQL, then the audit
	@$(BIN)/python -m bench.chaos.suite $(ARGS)

# What every request runs through, in the gateway and then in the ledger. The sources stay the truth: the copy is compiled
# as it stands. What mypyc gets wrong stays out, and tests/tidy/test_compiled.py says what that is.
FAST := $(patsubst %,tokenworks/%.py, \
	core/ids core/clock core/post core/steps core/units \
	agents/answers agents/awake agents/cycle agents/heads agents/lane agents/life agents/metrics agents/promise \
	agents/settling agents/shape agents/worst brain/route \
	engine/events engine/http engine/pace engine/record engine/sse engine/usage engine/wire \
	exchange/desk exchange/budget exchange/ledger exchange/batch exchange/state exchange/grants exchange/rater \
	exchange/journal/journal exchange/journal/frames exchange/journal/reading exchange/journal/waiters \
	exchange/store/fits exchange/log/leaves exchange/log/plain exchange/log/merkle exchange/log/writer)

build/fast/.done: $(shell find src -name '*.py') Makefile .venv/.dev-ready
	@echo "fast: compiling the request path with mypyc, one or two minutes"
	@rm -rf build/fast && mkdir -p build/fast && cp -r src/tokenworks build/fast/
	@cd build/fast && $(CURDIR)/$(BIN)/mypyc --ignore-missing-imports --disable-error-code import-untyped $(FAST) \
		> compile.log 2>&1 || { tail -20 compile.log; exit 1; }
	@touch $@

lock: ## Pin all requirements with their hashes again (needs uv on the PATH)
	@command -v uv >/dev/null || { echo "make lock needs uv on the PATH" >&2; exit 1; }
	uv pip compile $(LOCK) --group build -o requirements/run.txt
	uv pip compile $(LOCK) --group build --group dev -o requirements/dev.txt
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header -q pyproject.toml

clean: ## Remove caches and built files; .venv stays, so that the next run needs no network
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: while they are newer than what they stand for, nothing is downloaded or built.
.venv/.run-ready: requirements/run.txt pyproject.toml
	$(call install,requirements/run.txt)
	@touch $@

.venv/.dev-ready: requirements/dev.txt pyproject.toml
	$(call install,requirements/dev.txt)
	@touch .venv/.run-ready $@

RIGHT_PYTHON := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

define install
	@if [[ ! -x $(BIN)/python ]]; then \
		$(PYTHON) $(RIGHT_PYTHON) || { \
			echo "Tokenworks needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
			echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }; \
		echo "setup: creating .venv"; $(PYTHON) -m venv .venv; \
	fi
	@$(BIN)/python $(RIGHT_PYTHON) || { \
		echo "Tokenworks needs Python 3.11, 3.12 or 3.13, but .venv has $$($(BIN)/python --version)." >&2; \
		echo "Move .venv away and run make again, with PYTHON=python3.12 for example." >&2; exit 1; }
	@echo "setup: installing $(1), exact versions, hashes checked"
	@$(BIN)/python -m pip install -qq --require-hashes -r $(1)
	@echo "setup: installing tokenworks from this checkout"
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
endef
