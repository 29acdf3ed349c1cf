# `make` lists the targets. What a target needs is installed by scripts/setup.

CARGO  ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export LIFEBOAT_TOOLS ?= /var/cache/lifeboat-tools

.PHONY: help demo test sim check bench docs build setup clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: ## the whole story on a throw-away server, in a minute
	@scripts/setup demo
	$(CARGO) build --release --locked -p lifeboat-cli
	$(TARGET)/release/lifeboat demo

test: ## all tests, with trials on real PostgreSQL servers
	@scripts/setup
	@scripts/test

sim: ## histories of failure on a toy server; SEED=n replays one, HISTORIES=n runs so many
	LIFEBOAT_SEED=$(SEED) LIFEBOAT_HISTORIES=$(HISTORIES) \
	$(CARGO) test --locked -p lifeboat-jobs --test simulation -- --nocapture

check: ## format, clippy, licences, unused dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@if $(CARGO) deny --version > /dev/null 2>&1; then $(CARGO) deny --locked check; \
	else echo "check: cargo-deny is not installed, licences and bans were not checked"; fi
	@if $(CARGO) machete --version > /dev/null 2>&1; then $(CARGO) machete; \
	else echo "check: cargo-machete is not installed, unused dependencies were not checked"; fi

bench: ## lifeboat and its peers, measured side by side
	@scripts/setup bench
	$(CARGO) build --release --locked -p lifeboat-cli
	@scripts/bench $(BENCH)

docs: ## Rust documentation, and docs/reference from the program itself
	$(CARGO) doc --workspace --no-deps --locked
	$(CARGO) run --quiet --release --locked -p lifeboat-cli -- docs --into docs/reference

build: ## the release program: target/release/lifeboat
	$(CARGO) build --release --locked -p lifeboat-cli

setup: ## install what the tests need, nothing when it is there
	@scripts/setup

clean: ## remove what cargo built
	$(CARGO) clean
