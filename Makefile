# make demo and make test set everything up by themselves; make help lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The interpreter that the environment is made with: the first that is new enough.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
export VENV

# What make test runs, and how: make test TESTS=tests/nix PYTEST_OPTIONS=-x
TESTS ?= tests
PYTEST_OPTIONS ?= -n 2

# What a test needs of the system, as Debian's packages; tests/conftest.py skips tests without it.
SYSTEM_PACKAGES := busybox-static chromium chromium-driver cpio fish fuse3 groff-base linux-image-cloud-amd64 \
	linux-source-6.1 nix-bin pgbouncer postgresql prometheus qemu-system-x86 rclone strace systemd zsh

# An emulator of Bigtable: where Google's package has it, or where Go puts it (src/neve/testing/bigtable.py looks
# there too).
BIGTABLE_EMULATOR := cloud.google.com/go/bigtable/cmd/emulator@v1.58.0
BIGTABLE_EMULATORS := /usr/lib/google-cloud-sdk/platform/bigtable-emulator/cbtemulator $(HOME)/go/bin/emulator

# A second server that speaks S3: from the path, or where Go puts it (tests/s3.py looks there too).
GOFAKES3 := github.com/johannesboyne/gofakes3/cmd/gofakes3@v1.2.0

INSTALLED := $(VENV)/.installed

# What make fuzz feeds, and for how long: make fuzz FUZZ="nar narinfo" FUZZ_SECONDS=600
FUZZ ?=
FUZZ_SECONDS ?= 60

# How long make soak goes on, and what its chances come from: make soak SOAK_SECONDS=3600 SEED=7
SOAK_SECONDS ?= 300
SEED ?=

# Of which operations make faults tries everything: make faults FAULTS="import gc"
FAULTS ?=

.PHONY: help setup demo test test-system-deps check man audit bench fuzz soak faults clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1\t\2/p' Makefile | expand -t 20

setup: $(INSTALLED)  ## make the environment with neve and its tools; nothing to do if it is up to date

# The constraints come through the environment, so that they hold for the build backend too
# (releases of pip from 25.3 on read the second variable there).
$(INSTALLED): pyproject.toml constraints.txt
	@if ! "$(or $(PYTHON),false)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "neve needs Python 3.11 or newer, and $(if $(PYTHON),$(PYTHON) is not,none was found)." \
			"Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@echo "Setting up $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv "$(VENV)"
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		"$(VENV)/bin/python" -m pip install --quiet --editable '.[all,dev]'
	@touch "$@"

demo: setup  ## import something real into an embedded store, list it, render its NAR
	@scripts/demo

test: setup  ## run the tests, but for those that need something which is not installed
	@"$(VENV)/bin/python" -m pytest $(PYTEST_OPTIONS) $(TESTS)

test-system-deps:  ## as root, on Debian: install what else the tests need
	@missing=$$(for package in $(SYSTEM_PACKAGES); do \
		dpkg-query --show --showformat='$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' \
			|| echo $$package; done); \
	if [ -z "$$missing" ]; then echo "All there: $(SYSTEM_PACKAGES)"; exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "Missing, to be installed as root on Debian:" $$missing >&2; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update && apt-get install --yes --no-install-recommends $$missing
	@for program in $(BIGTABLE_EMULATORS) "$$(command -v cbtemulator)"; do \
		if [ -x "$$program" ]; then echo "There is a Bigtable emulator: $$program"; exit 0; fi; done; \
	if ! command -v go >/dev/null; then \
		echo "Missing, for the tests of Bigtable: Go, or Google's package google-cloud-cli-bigtable-emulator" >&2; \
		exit 1; fi; \
	GOBIN="$$HOME/go/bin" go install $(BIGTABLE_EMULATOR)
	@for program in "$$(command -v gofakes3)" "$$HOME/go/bin/gofakes3"; do \
		if [ -x "$$program" ]; then echo "There is gofakes3: $$program"; exit 0; fi; done; \
	if ! command -v go >/dev/null; then echo "Missing, for the tests of object stores: Go" >&2; exit 1; fi; \
	GOBIN="$$HOME/go/bin" go install $(GOFAKES3)

check: setup  ## the gate: format, lint, types, layers, generated code, lock
	@scripts/check

man: setup  ## write the manual page anew, from what --help says
	@"$(VENV)/bin/python" scripts/gen_man.py

# In an environment of its own, so that what it brings is not audited. Needs the network; with
# AUDIT_OPTIONS=--if-reachable only what is known to be vulnerable is a failure.
audit:  ## compare the locked dependencies with the databases of known vulnerabilities
	@"$(PYTHON)" -m venv "$(VENV)-audit"
	@"$(VENV)-audit/bin/python" -m pip install --quiet pip-audit
	@"$(PYTHON)" scripts/audit.py "$(VENV)-audit/bin/pip-audit" $(AUDIT_OPTIONS)

bench: setup  ## run every benchmark
	@set -e; shopt -s nullglob; \
	for script in benchmarks/[!_]*.py; do echo "== $$script"; "$(VENV)/bin/python" "$$script"; done

fuzz: setup  ## feed each parser with rubbish, led by what code that reaches
	@PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		"$(VENV)/bin/python" -m pip install --quiet --editable '.[fuzz]' \
		|| echo "There is no atheris for this Python: it goes on without." >&2
	@"$(VENV)/bin/python" -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

soak: setup  ## use, kill and collect one store in many processes, and look at everything
	@"$(VENV)/bin/python" -m tests.soak.run $(SOAK_SECONDS) $(SEED)

faults: setup  ## fail, cut short or kill at every call that writes, one after the other, and look at everything
	@"$(VENV)/bin/python" -m tests.faults.run $(FAULTS)

clean:  ## remove the environment, the demo's store and all caches
	rm -rf .venv .venv-audit demo-store build src/*.egg-info
	rm -rf .fuzz .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
