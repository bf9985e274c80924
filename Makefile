# Everything a developer or CI does with tidegate. One target directory and one profile (dev) serve
# build, lint, test and demo, so that nothing is compiled twice; bench and release have their own.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# 1.2 is what Debian 12's systemd measures, 1.6 what we promise.
UNIT := systemd/tidegate.service
UNIT_THRESHOLD := 16

# Of each target, one after the other.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(sort $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))))
FUZZ := cargo +nightly fuzz
FUZZ_BUILD := --sanitizer none --release --debug-assertions

.PHONY: help setup build demo test ci fmt fmt-check lint deny advisories conf unit bench fuzz release

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building and testing need (Debian 12; does nothing when nothing is missing)
	@.ci/install test

build: ## compile the gateway
	@.ci/install build
	cargo build --locked

demo: ## run the gateway against the built-in DeepSeek emulator, with a tenant to try it
	@.ci/install build
	cargo run --locked -- demo

test: setup ## run all tests, those with the Python and JavaScript SDKs too
	cargo test --locked

ci: fmt-check unit deny lint conf test ## everything that must pass before a change lands

fmt: ## format the code
	cargo fmt

fmt-check:
	cargo fmt --check

lint: ## clippy, with every warning an error
	@.ci/install build
	cargo clippy --locked --all-targets -- -D warnings

deny: ## check the dependencies against deny.toml, offline
	@.ci/install deny
	cargo fetch --locked --quiet
	target/tools/bin/cargo-deny --locked --offline check bans licenses sources

advisories: ## check the dependencies against the RustSec database (fetches it: not in CI)
	@.ci/install deny
	target/tools/bin/cargo-deny --locked check advisories

# reference.yaml names certificates that nobody has; a unit test loads it instead.
conf: export DEEPSEEK_API_KEY = sk-example
conf: export DEEPSEEK_SECOND_API_KEY = sk-example-2
conf: export ARK_API_KEY = ark-example
conf: export TIDEGATE_ADMIN_TOKEN = example
conf: ## check that the example configurations are valid as they stand
	@.ci/install build
	cargo run --locked --quiet -- check -c conf/tidegate.yaml
	cargo run --locked --quiet -- check -c conf/base.yaml
	cargo run --locked --quiet -- check -c conf/base.yaml -c conf/production.yaml
	cargo run --locked --quiet -- check -c conf/base.yaml -c conf/production.yaml --explain server.limits

unit: ## check the systemd unit: syntax, and an exposure score of 1.6 or lower
	@.ci/install unit
	@mkdir -p target/unit
	@sed 's#/usr/bin/tidegate#/bin/true#' $(UNIT) > target/unit/tidegate.service
	systemd-analyze verify --man=no target/unit/tidegate.service
	@systemd-analyze security --offline=true --no-pager --threshold=$(UNIT_THRESHOLD) $(UNIT) > target/unit/score || \
	    { grep -E '✗|^→' target/unit/score; exit 1; }
	@grep '^→' target/unit/score

bench: ## run the benchmarks
	@.ci/install build
	cargo bench --locked

# New inputs go to fuzz/corpus, which stays on this machine; the seeds are only read.
fuzz: ## run each fuzz target for FUZZ_SECONDS (needs a nightly toolchain: fuzz/README.md)
	@.ci/install build
	$(FUZZ) build $(FUZZ_BUILD)
	@for target in $(FUZZ_TARGETS); do \
	    printf '== %s\n' "$$target"; \
	    mkdir -p "fuzz/corpus/$$target"; \
	    $(FUZZ) run $(FUZZ_BUILD) "$$target" "fuzz/corpus/$$target" "fuzz/seeds/$$target" -- \
	        -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -print_final_stats=1; \
	done

release: ## compile the gateway for production
	@.ci/install build
	cargo build --locked --release
