# `make` prints this menu. Every target sets up what it needs first; set-up is done once and again only
# when its inputs change.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KEEP ?=
# Labs start hundreds of Pythons: each would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

help: ## this menu
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements/dev.txt pyproject.toml build_hook/setup.sh build_hook/bpf_objects.py $(wildcard bpf/*.[ch])
	@bash build_hook/setup.sh
	@touch $@

setup: $(READY) ## system packages, Python environment, BPF objects

demo: $(READY) ## the main job: lab `pair`, real traffic, a table of what happened (KEEP=1 leaves the lab up)
	@$(BIN)/softunicast lab demo $(if $(KEEP),--keep)

# First three processes, which keep two cores busy (labs wait now and then), a file at a time, the tiers with the longest
# files first; then, one by one, what would disturb other tests or be disturbed by them.
test: $(READY) lint ## lint, types, import contracts and every test tier
	@$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not alone" tests/netns tests/bpf tests/ledger tests/property tests/unit
	@$(BIN)/pytest -q -m alone

lint: $(READY) ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

format: $(READY) ## rewrite the sources in the house format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

unit: $(READY) ## only the tests that need no kernel (unit, property, ledger)
	@$(BIN)/pytest -q tests/unit tests/property tests/ledger

bpf: $(READY) ## only the BPF packet tables
	@$(BIN)/pytest -q tests/bpf

netns: $(READY) ## only the tests with whole labs in network namespaces
	@$(BIN)/pytest -q tests/netns

programs: $(READY) ## programs and containers that were never changed: large ones too (installs Node, Chromium, runc, podman)
	@apt-get -qq install -y --no-install-recommends nodejs chromium runc podman >/dev/null
	@$(BIN)/pytest -q tests/netns/test_run_programs.py tests/netns/test_pair_units.py

soak: $(READY) ## conversations by the tens of thousands a second for five minutes; what is left and what went where
	@$(BIN)/python -m bench.soak $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))

storm: $(READY) ## forwarded flows and sockets of ten processes share 256 ports for a minute, as fast as they can
	@$(BIN)/python -m bench.storm $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))

# Benchmarks: QUICK=1 proves in a minute that everything runs; OUT=FOLDER writes the JSON elsewhere.
BENCH = bash bench/setup.sh && $(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(OUT),--out $(OUT))

bench: $(READY) ## every benchmark, peers included: tables, JSON, plots (about seven minutes; QUICK=1: one)
	@$(BENCH)

bench-packets bench-programs bench-director bench-iperf bench-connections bench-connect bench-strategies: $(READY)
	@$(BENCH) $(@:bench-%=%)

abi: $(READY) ## regenerate src/softunicast/kernel/abi.py from the objects' BTF
	@$(BIN)/python -m softunicast.kernel.abigen

requirements: $(READY) ## refresh the hash-pinned export (requirements/dev.txt)
	@$(BIN)/uv pip compile -q --upgrade --group dev pyproject.toml requirements/build.in --generate-hashes \
	  --no-header --no-annotate --python-version 3.11 -o requirements/dev.txt

clean: ## remove the environment and everything built
	@rm -rf $(VENV) build dist src/softunicast/kernel/bpf/*.o .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup demo test lint format unit bpf netns programs soak storm bench bench-packets bench-programs bench-director bench-iperf \
  bench-connections bench-connect bench-strategies abi requirements clean
