# Everything a developer runs. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is new enough and really runs; `make PYTHON=…` names another.
PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$name; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
LOCK := python/requirements.lock
RUST_SOURCES := $(shell find rust -path rust/target -prune -o -path rust/fuzz -prune -o \( -name '*.rs' -o -name 'Cargo.*' \) -print)
CARGO := cargo
MANIFEST := --manifest-path rust/Cargo.toml --locked
PYTEST := $(BIN)/python -m pytest
# How long each target of the fuzzer runs, and what it is built for.
FUZZ_SECONDS ?= 20
RUST_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# How much more than the everyday tests the campaigns do.
SCALE ?= 10
# How long the tests in virtual machines may take, with the wheel and the image that they make first.
VM_MINUTES ?= 35
# What some tests try with, and are skipped without (Debian packages).
TEST_PACKAGES := bubblewrap curl dbus-daemon gcc iproute2 nix-bin prometheus skopeo squashfs-tools systemd uidmap umoci zsh
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
# Where tests do more at a larger scale.
CAMPAIGNS := tests/property tests/cluster tests/blobs tests/sandbox/test_endurance.py $(addprefix tests/integration/test_, log_kill.py consensus.py store_processes.py \
	node_kill.py schedules_node.py array_node.py net.py failpoints.py) \
	$(addprefix tests/replication/test_, campaign.py strangers.py)

.PHONY: help setup setup-tests setup-vm demo test lint rust-test bench test-faults test-vm fuzz reference deb lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.built ## Make the environment, build the extension, install the commands into .venv/bin

$(VENV)/.locked: $(LOCK)
	@test -n "$(PYTHON)" || \
	  { echo "Python 3.11 or newer is needed; on Debian 12: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "The venv module of $(PYTHON) is missing; on Debian: apt install python3-venv"; exit 1; }
	@command -v $(CARGO) >/dev/null || \
	  { echo "A Rust toolchain (cargo 1.94 or newer) is needed; see https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is needed; on Debian: apt install gcc libc6-dev"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	@touch $@

$(VENV)/.built: $(VENV)/.locked pyproject.toml $(RUST_SOURCES)
	PIP_QUIET=1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --quiet
	@touch $@

demo: setup ## Run the main job on an embedded node: submit, queue, fail, kill, restart
	$(BIN)/python -m jobs.demo

test: setup rust-test ## Set up and run every everyday test
	# One process a core: most tests wait for processes of their own. A file's tests run in one of them, in order.
	$(PYTEST) -m 'not slow and not vm' -q -n 2 --dist loadfile

rust-test: setup ## Run the Rust tests
	$(CARGO) test $(MANIFEST) --quiet --workspace --exclude jobs-bindings --exclude jobs-sql
	# As the extension is built: DataFusion once more, for debugging, takes many minutes.
	PYO3_PYTHON=$(abspath $(BIN)/python) $(CARGO) test $(MANIFEST) --quiet --release -p jobs-sql -p jobs-bindings

lint: setup ## Check formats, lints and types
	$(BIN)/ruff format --check python tests benchmarks nix systemd
	$(BIN)/ruff check python tests benchmarks nix systemd
	$(BIN)/mypy
	$(CARGO) fmt --manifest-path rust/Cargo.toml --all --check
	$(CARGO) clippy $(MANIFEST) --all-targets -- -D warnings

test-faults: setup ## The campaigns at length (SCALE=10): kills, crashes, long random runs
	JOBS_TEST_SCALE=$(SCALE) $(CARGO) test $(MANIFEST) --quiet --release -p jobs-log
	# Of the whole workspace, as in rust-test: for one crate alone its dependencies would be built anew.
	JOBS_TEST_SCALE=$(SCALE) $(CARGO) test $(MANIFEST) --quiet --workspace --exclude jobs-bindings --exclude jobs-sql \
	  --lib --test hostile
	JOBS_TEST_SCALE=$(SCALE) $(PYTEST) -m 'slow and not vm' -q --timeout 1800 -n 2 --dist loadfile
	# libFuzzer is built from its source.
	if command -v c++ >/dev/null; then $(MAKE) --no-print-directory fuzz FUZZ_SECONDS=10; \
	  else echo "skipped: fuzz (there is no C++ compiler)"; fi
	# At the scale of every day these are what `make test` has run.
	test $(SCALE) = 1 || JOBS_TEST_SCALE=$(SCALE) $(PYTEST) -m 'not slow' -q --timeout 1800 -n 2 --dist loadfile $(CAMPAIGNS)

setup-tests: ## Install what some tests are skipped without (Debian packages, with sudo when not root)
	$(AS_ROOT) apt-get update --quiet
	$(AS_ROOT) apt-get install --yes --quiet --no-install-recommends $(TEST_PACKAGES)

setup-vm: setup ## Install what virtual machines need (Debian packages, with sudo when not root)
	$(AS_ROOT) apt-get update --quiet
	packages="$$($(BIN)/python -m tests.vm --packages)"; install="apt-get install --yes --quiet --no-install-recommends"; \
	$(AS_ROOT) $$install $$packages || { \
	  echo "QEMU's parts have to be of one version: those that are newer than this Debian's are replaced by it"; \
	  $(AS_ROOT) $$install --allow-downgrades \
	    $$(echo "$$packages" | sed "s|qemu-utils|&/$$(. /etc/os-release && echo $$VERSION_CODENAME)|"); }

test-vm: setup ## What needs a machine of its own: systemd, cgroup limits, power cuts; in virtual machines
	# With an end of its own: it is the longest of all, and waits for machines that may hang.
	timeout --kill-after=60s $(VM_MINUTES)m $(PYTEST) -q -n 2 --dist loadfile --durations=0 tests/vm

fuzz: ## Random bytes for whatever reads bytes of others (FUZZ_SECONDS=20 each)
	cd rust/fuzz && $(CARGO) build --release --locked --quiet --target $(RUST_HOST)
	for target in $(notdir $(basename $(wildcard rust/fuzz/targets/*.rs))); do \
	  mkdir -p rust/target/fuzz/found/$$target; \
	  rust/target/fuzz/$(RUST_HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -rss_limit_mb=1024 \
	    -verbosity=0 -print_final_stats=1 -artifact_prefix=rust/target/fuzz/$$target- \
	    rust/target/fuzz/found/$$target rust/fuzz/corpus/$$target; \
	done

bench: setup ## Measure; prints ratios against what the same machine can do
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.arrays
	$(BIN)/python -m benchmarks.retention
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.takeover
	$(BIN)/python -m benchmarks.forward
	$(BIN)/python -m benchmarks.net
	$(BIN)/python -m benchmarks.sql
	$(BIN)/python -m benchmarks.blobs
	$(BIN)/python -m benchmarks.replication

reference: setup ## Write what docs has of the code: every key, command, operation and metric
	$(BIN)/python -m jobs.config.document > docs/config.md
	$(BIN)/python -m jobs.cli.document > docs/reference/cli.md
	$(BIN)/python -m jobs.config.example > systemd/node.toml
	$(BIN)/python -m jobs.api.document > docs/reference/api.md
	$(BIN)/python -m jobs.api.metricsdocument > docs/reference/metrics.md

deb: setup ## Make the Debian package, in dist/
	$(BIN)/maturin build --release --locked --quiet --interpreter $(BIN)/python --out dist
	$(BIN)/python systemd/debian/build.py "$$(ls -t dist/jobs-*.whl | head -1)" dist

lock: ## Renew the lock file, and what the Nix package takes of it, from pyproject.toml
	@command -v uv >/dev/null || { echo "uv is needed to renew the lock file; see https://docs.astral.sh/uv"; exit 1; }
	uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal \
	  --group tools pyproject.toml -o $(LOCK)
	$(MAKE) setup
	$(BIN)/python nix/wheels.py > nix/wheels.json.new && mv nix/wheels.json.new nix/wheels.json

clean: ## Remove what was built
	rm -rf $(VENV) dist build rust/target python/jobs/*.so
