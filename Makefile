# Holdfast: every check that CI runs is a target here. 'make help' lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.holdfast-setup
JOBS ?= 2
ONLY ?=
CRASH_ROUNDS ?= 1000
CRASH_ROUNDS_QUICK ?= 50
ANVIL_VERSION ?= 1.7.1
ANVIL := .tools/anvil/node_modules/.bin/anvil
AZURITE_VERSION ?= 3.35.0
AZURITE := .tools/azurite/node_modules/.bin/azurite-blob
MOTO := .tools/moto/bin/moto_server
PROOFS := .tools/proofs
RUST_VERIFIER := $(PROOFS)/rust/target/release/holdfast-proofs-rust
GO_VERIFIER := $(PROOFS)/go/verifier
KERNEL := $(wildcard kernel/Cargo.toml kernel/pyproject.toml kernel/src/*.rs)
CARGO_MANIFEST := --manifest-path kernel/Cargo.toml
SLOWEST := --durations=5 --durations-min=2

.PHONY: help setup demo test test-pure test-slow test-live test-proofs lint types meta check crash crash-quick bench docs wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

setup: $(STAMP) ## create .venv with the package, all extras and the development tools
	@echo "ready: $(BIN)/holdfast"

$(STAMP): pyproject.toml constraints.txt $(KERNEL)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Holdfast needs Python 3.11 or newer; set PYTHON=")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@$(MAKE) --no-print-directory _kernel
	@touch $@

.PHONY: _kernel
_kernel:
	@if [ ! -f kernel/Cargo.toml ]; then \
	    :; \
	elif ! command -v cargo >/dev/null; then \
	    echo "note: cargo is missing, so the native kernel is not built: the pure Python twin is used (same bytes, slower)"; \
	else \
	    $(PY) -m pip install --quiet --disable-pip-version-check ./kernel; \
	fi

demo: $(STAMP) ## write chains, kill the writers, resume, verify, reorganise, prove
	$(PY) demo/run.py

test: $(STAMP) ## every test but the crash, live and proofs tiers
	$(PY) -m pytest -n $(JOBS) --dist loadfile $(SLOWEST)

test-pure: $(STAMP) ## the tests of the state and the tree without the native kernel
	HOLDFAST_PURE=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(SLOWEST) \
	    tests/unit/test_state_*.py tests/unit/test_views_*.py tests/unit/test_merkle_*.py tests/model/test_state_model.py

test-slow: $(STAMP) ## only the tests marked slow
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "slow and not crash and not live and not proofs" $(SLOWEST)

test-live: $(STAMP) $(ANVIL) $(AZURITE) $(MOTO) ## the tests against a real node and servers of S3 and Azure; a skip is a failure
	$(PY) -m pytest -m live --fail-on-skip tests/live $(SLOWEST)

$(ANVIL):
	@command -v npm >/dev/null || { echo "test-live needs npm to fetch the node 'anvil' (@foundry-rs/anvil)" >&2; exit 1; }
	npm install --no-audit --no-fund --loglevel=error --prefix .tools/anvil @foundry-rs/anvil@$(ANVIL_VERSION)
	$@ --version

$(AZURITE):
	@command -v npm >/dev/null || { echo "test-live needs npm to fetch the server 'azurite'" >&2; exit 1; }
	npm install --no-audit --no-fund --loglevel=error --prefix .tools/azurite azurite@$(AZURITE_VERSION)
	test -x $@

$(MOTO): tests/live/moto.txt
	$(PYTHON) -m venv .tools/moto
	.tools/moto/bin/python -m pip install --quiet --disable-pip-version-check -r tests/live/moto.txt
	touch $@

test-proofs: $(STAMP) $(RUST_VERIFIER) $(GO_VERIFIER) ## the proofs against the verifiers of others; a skip is a failure
	$(PY) -m pytest -m proofs --fail-on-skip tests/proofs $(SLOWEST)

$(RUST_VERIFIER): tests/proofs/verifiers/rust/Cargo.toml tests/proofs/verifiers/rust/src/main.rs
	@command -v cargo >/dev/null || { echo "test-proofs needs cargo to build the crates jmt and ics23" >&2; exit 1; }
	mkdir -p $(PROOFS) && cp -R tests/proofs/verifiers/rust $(PROOFS)/
	cd $(PROOFS)/rust && cargo build --quiet --release --target-dir target
	touch $@

$(GO_VERIFIER): tests/proofs/verifiers/go/go.mod tests/proofs/verifiers/go/main.go
	@command -v go >/dev/null || { echo "test-proofs needs go to build the modules ics23/go and celestiaorg/smt" >&2; exit 1; }
	mkdir -p $(PROOFS) && cp -R tests/proofs/verifiers/go $(PROOFS)/
	cd $(PROOFS)/go && go mod tidy && go build -o verifier .

lint: $(STAMP) _lint-kernel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: _lint-kernel
_lint-kernel:
	@if cargo fmt --version >/dev/null 2>&1; then \
	    echo "cargo fmt --check"; cargo fmt $(CARGO_MANIFEST) --check; \
	else \
	    echo "note: rustfmt is missing, so the format of the kernel is not checked"; \
	fi
	@if cargo clippy --version >/dev/null 2>&1; then \
	    echo "cargo clippy"; PYO3_PYTHON=$(abspath $(PY)) cargo clippy --quiet $(CARGO_MANIFEST) --release --all-targets -- -D warnings; \
	else \
	    echo "note: clippy is missing, so the kernel is not linted"; \
	fi

types: $(STAMP)
	$(BIN)/mypy

meta: $(STAMP)
	$(PY) -m pytest -q tests/meta

check: lint types ## format, lint, types, fast tests and the rules of the house
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile -m "not slow and not crash and not live and not proofs"

crash: $(STAMP) ## the crash tier with full counts (CRASH_ROUNDS=1000)
	HOLDFAST_CRASH_ROUNDS=$(CRASH_ROUNDS) $(PY) -m pytest -n $(JOBS) -m crash --timeout=0 -o faulthandler_timeout=0 $(SLOWEST)

crash-quick: $(STAMP) ## the crash tier with the counts of CI (CRASH_ROUNDS_QUICK=50)
	HOLDFAST_CRASH_ROUNDS=$(CRASH_ROUNDS_QUICK) $(PY) -m pytest -n $(JOBS) -m crash $(SLOWEST)

bench: $(STAMP) ## run the benchmarks (ONLY=name for one)
	$(PY) -m bench $(if $(ONLY),--only $(ONLY))

docs: $(STAMP) ## write the generated tables of docs/ anew
	$(PY) -m tests.meta.tables --write
	$(PY) -m tests.cli.reference --write

wheel: $(STAMP) ## build the wheels (package, and the kernel if cargo is there) into dist/
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	@if command -v cargo >/dev/null; then \
	    $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist ./kernel; \
	else \
	    echo "note: cargo is missing, so the kernel has no wheel"; \
	fi
	@ls -1 dist/*.whl

clean: ## remove what can be made again (.venv and .tools stay)
	rm -rf build dist kernel/target src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/out
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
