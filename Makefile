# make run    boots a node and does the main job (INPUT=path takes your own file or directory, NODES=3
#             does it across a cluster of three)
# make test   the whole test suite
# make bench  measures DistOS beside its peers (ONLY=name for one figure)
# make help   lists the rest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
IMAGE ?=
# How many nodes `make run` boots.
NODES ?= 1
INPUT ?=
ONLY ?=
# Where the node keeps its data. Without it, a new directory that is removed after a good run.
NODE ?=
# How many runs of the stores are cut in the crash tests, and the first one's seed.
RUNS ?= 20
SEED ?= 1

# Everything at once, with its tests: built without them, dependencies have fewer features, and are built again
# for the tests.
BUILD := $(CARGO) build --workspace --all-targets --locked

# How many small fleets `make sim` runs.
SEEDS ?=

# What to fuzz (nothing: every target, one after the other), and for how many seconds.
T ?=
S ?= 60

.PHONY: help
help: ## Lists these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Installs the Debian packages that the build needs; nothing if all are there
	@.ci/setup

.PHONY: wasm
wasm: setup ## Builds the demo's WASI program
	@services/node/demo/build.sh

.PHONY: foreign
foreign: setup ## Builds the examples of clients in Python and C++
	@docs/examples/python/setup.sh
	@$(MAKE) --silent --directory docs/examples/cpp CARGO="$(CARGO)"

.PHONY: run
run: setup wasm ## Boots a node and does the main job; INPUT=path for your own data, NODES=3 for a cluster
	$(CARGO) build --release --locked -p distos-node
	@node="$(NODE)"; \
	if [[ -z "$$node" ]]; then \
	  node=$$(mktemp -d "$${TMPDIR:-/tmp}/distos.XXXXXX"); \
	  trap 'status=$$?; if ((status == 0)); then rm -rf "$$node"; else echo "what the node left is in $$node" >&2; fi' EXIT; \
	fi; \
	target/release/distos demo --node "$$node" --nodes "$(NODES)" \
	  $(if $(IMAGE),--image "$(IMAGE)") $(if $(INPUT),--input "$(INPUT)")

# Cheap checks first: what takes a second fails in a second. Clippy's driver compiles what it has checked, so
# the workspace is compiled once, with warnings as errors, and not checked first and then compiled. It leaves out
# what rustc adds to pointers in debug builds, so that the tables, the crate with unsafe code that can be tested
# by itself, are tested once more.
.PHONY: test
test: export RUSTC_WORKSPACE_WRAPPER := clippy-driver
test: export CLIPPY_ARGS := -Dwarnings
test: setup fmt-check conformance unit specs-quick pointers loom ## The whole test suite

.PHONY: pointers
pointers: export RUSTC_WORKSPACE_WRAPPER :=
pointers: export CLIPPY_ARGS :=
pointers: setup
	$(CARGO) test --locked --quiet -p distos-table --test table

.PHONY: fmt
fmt: ## Formats the code
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check:
	$(CARGO) fmt --all --check

.PHONY: conformance
conformance: setup ## Arrows between rooms, size of the kernel, unsafe code, documentation
	$(CARGO) test --locked --quiet -p distos-conformance -- --nocapture

.PHONY: lint
lint: setup ## Clippy, with warnings as errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# One test more than there are processors: those of whole nodes, of which two run at a time, wait for most of it.
# End-to-end tests start the `distos` binary, the WASI program, the examples of clients and the model
# checker, so all are there first.
.PHONY: unit
unit: setup wasm foreign tlc etcd ## Every test of the workspace, from unit to end-to-end
	$(BUILD)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  set -x; NEXTEST_TEST_THREADS=$$(($$(nproc) + 1)) $(CARGO) nextest run --workspace --locked --no-fail-fast; \
	else \
	  set -x; $(CARGO) test --workspace --locked --no-fail-fast --lib --bins --tests; \
	fi

.PHONY: tlc
tlc: setup
	@specs/setup.sh

.PHONY: etcd
etcd: setup ## Fetches etcd for the tests; it is not installed
	@tests/e2e/etcd.sh

# Small bounds of every model, and the forest's code beside its model: the part of `make specs` that
# is part of `make test`.
.PHONY: specs-quick
specs-quick: tlc
	$(BUILD)
	target/debug/distos-specs --quick

.PHONY: specs
specs: tlc loom ## Checks all specifications with their mutants, and the code beside its model; ONLY=name for one
	@specs/setup.sh second
	$(BUILD)
	target/debug/distos-specs $(addprefix --only ,$(ONLY))
	$(CARGO) test --workspace --locked --quiet --test traces --test leases --test handoffs

# A target directory of its own, because the flag rebuilds everything.
.PHONY: loom
loom: export RUSTC_WORKSPACE_WRAPPER :=
loom: ## Explores the schedules of the capability table and the guards
	RUSTFLAGS="--cfg loom" $(CARGO) test --release --locked --quiet -p distos-table --test loom --target-dir target/loom

.PHONY: crash
crash: setup ## Cuts the stores' writes everywhere; RUNS=20 for so many runs, SEED=7 for the first
	DISTOS_CRASH_RUNS=$(RUNS) DISTOS_CRASH_SEED=$(SEED) \
	  $(CARGO) test --locked -p distos-crash --test crashes -- --nocapture no_crash

# The peers are fetched and built with the benchmark; the node is the one that `make run` builds.
.PHONY: sim
sim: setup ## Many fleets of nodes in simulated time, of 3 to 1,024 nodes (SEEDS=100 for fewer)
	$(CARGO) build --release --locked -p distos-sim --bin distos-fleet
	target/release/distos-fleet $(if $(SEEDS),--seeds "$(SEEDS)")

.PHONY: bench
bench: wasm ## Measures DistOS beside its peers, writes target/bench/figures.json; ONLY=name for one figure
	@.ci/setup bench
	$(CARGO) build --release --locked -p distos-node
	$(CARGO) build --release --locked -p distos-bench -p distos-e2e --bins
	target/release/distos-bench $(addprefix --only ,$(ONLY))

# libFuzzer learns from coverage, which these stable options of the compiler make; naming the target
# keeps them from build scripts.
COVERAGE := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1

.PHONY: fuzz
fuzz: setup ## Fuzzes for longer than make test, guided by coverage; T=chain S=600 for one target
	@host=$$(rustc -vV | sed -n 's/^host: //p'); \
	RUSTFLAGS="$(COVERAGE)" $(CARGO) build --locked -p distos-fuzz --features libfuzzer --bin guided \
	  --target "$$host" --target-dir target/guided; \
	for target in $(or $(T),$$(ls tests/fuzz/corpus)); do \
	  mkdir -p "target/fuzz/$$target/corpus"; \
	  echo "── $$target"; \
	  DISTOS_FUZZ_TARGET=$$target "target/guided/$$host/debug/guided" \
	    -max_total_time=$(S) -timeout=60 -rss_limit_mb=4096 -print_final_stats=1 \
	    -artifact_prefix="target/fuzz/$$target/" "target/fuzz/$$target/corpus" \
	    "tests/fuzz/corpus/$$target" $$(ls -d "tests/fuzz/findings/$$target" 2>/dev/null || true); \
	done

.PHONY: deny
deny: ## Licences, sources and duplicates of dependencies, where cargo-deny is installed
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  set -x; $(CARGO) deny --locked check bans licenses sources; \
	else \
	  echo "cargo-deny is not installed, so dependencies were not checked: cargo install --locked cargo-deny" >&2; \
	  exit 1; \
	fi
