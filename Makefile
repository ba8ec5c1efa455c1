# Everything a developer runs. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
LOCK := python/requirements.lock
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name 'Cargo.*' | grep -v '/target/')
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup demo test lint rust-test bench test-faults lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.built ## Make the environment, build the extension, install the commands into .venv/bin

$(VENV)/.python: $(LOCK)
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; on Debian 12: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	@command -v cargo >/dev/null || \
	  { echo "A Rust toolchain (cargo, 1.85 or newer) is needed; see https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is needed; on Debian: apt install gcc"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	touch $@

$(VENV)/.built: $(VENV)/.python pyproject.toml $(RUST_SOURCES)
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --quiet
	touch $@

demo: setup ## Run the main job on an embedded node: submit, queue, fail, kill, restart
	$(BIN)/python -m jobs.demo

lint: setup ## Check formats, lints and types
	$(BIN)/ruff format --check python tests benchmarks
	$(BIN)/ruff check python tests benchmarks
	$(BIN)/mypy
	cargo fmt --manifest-path rust/Cargo.toml --all --check
	cargo clippy --manifest-path rust/Cargo.toml --locked --all-targets -- -D warnings

rust-test: ## Run the Rust tests
	cargo test --manifest-path rust/Cargo.toml --locked --quiet --workspace --exclude jobs-bindings

test: lint rust-test ## Set up and run every everyday test
	$(PYTEST) -m 'not slow' -q

test-faults: setup ## The slow campaigns: kills, crashes, long random runs
	JOBS_TEST_SCALE=10 $(PYTEST) -q --timeout 1800 tests/integration/test_log_kill.py tests/integration/test_consensus.py \
	  tests/integration/test_node_kill.py tests/property

bench: setup ## Measure; prints ratios against what the same machine can do
	$(BIN)/python -m benchmarks

lock: ## Renew the lock file from pyproject.toml
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  --universal --group tools pyproject.toml -o $(LOCK)

clean: ## Remove what was built
	rm -rf $(VENV) dist build rust/target python/jobs/*.so
