# `make` or `make help` lists the targets. Everything is installed in .venv, and only when pyproject.toml
# or constraints.txt changed. PYTHON=... chooses the interpreter, PIP_FLAGS=... goes to each pip install,
# WORKERS=... is the number of test processes (0: in this one), TESTS=... picks tests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # the environment is one; pytest has its own workers

IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c '$(IS_SUPPORTED)' >/dev/null 2>&1; then echo $$python; break; fi; done)
endif
PIP_FLAGS ?=
export PIP_FLAGS
WORKERS ?= 2
TESTS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.installed ## install, then run the demo: no account, no download of weights
	@HF_HUB_OFFLINE=1 $(BIN)/dinoprobe demo

.PHONY: test
test: $(VENV)/.installed-dev ## install with the dev extra, then run the whole test suite with the coverage gate
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n $(WORKERS) $(if $(TESTS),$(TESTS),--cov)

.PHONY: parity
parity: $(VENV)/.installed-dev ## measure every source of weights, and write the table of docs/checkpoints.md
	@echo "==> parity"
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	DINOPROBE_PARITY=$$folder $(BIN)/python -m pytest -q -n $(WORKERS) tests/parity/test_sources.py -k features; \
	$(BIN)/python -m tests.parity.table "$$folder"

.PHONY: soak
soak: $(VENV)/.installed-dev ## the service under ten times its load and 10,000 hostile uploads: minutes
	@$(BIN)/python benchmarks/soak.py

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff: rules and format; the types of the page's modules, where node is
	@echo "==> ruff"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@echo "==> tsc"
	@tools/check_js.sh

.PHONY: format
format: $(VENV)/.installed-dev ## ruff: apply the format and the safe fixes
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: type
type: $(VENV)/.installed-dev ## mypy, strict
	@echo "==> mypy"
	@$(BIN)/mypy

.PHONY: imports
imports: $(VENV)/.installed-dev ## import-linter: imports point downwards
	@echo "==> import-linter"
	@$(BIN)/lint-imports

.PHONY: check
check: lint type imports test ## lint, type, imports and test: what a change must pass

.PHONY: smoke
smoke: $(VENV)/.installed-dev ## build the wheel and use it in a fresh environment, outside of the checkout
	@tools/smoke.sh $(BIN)/python

.PHONY: constraints
constraints: $(VENV)/.created ## write constraints.txt anew, from the newest versions that pyproject.toml admits
	@tools/constraints.sh $(BIN)/python

.PHONY: clean
clean: ## remove build outputs and caches
	@rm -rf dist build .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find src tests recipes tools -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## clean, and remove the environment too
	@rm -rf $(VENV)

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: dinoprobe needs Python 3.11 or newer, and none is on the path." >&2; \
		echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
		exit 2; fi
	@$(PYTHON) -c '$(IS_SUPPORTED)' 2>/dev/null || { \
		echo "make: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo no Python at all); dinoprobe needs Python 3.11 or newer." >&2; \
		echo "Name another: make PYTHON=/path/to/python3" >&2; \
		exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) can not create virtual environments: its modules venv and ensurepip are missing." >&2; \
		echo "Install them (Debian, Ubuntu: apt-get install python3-venv), then run make again." >&2; \
		exit 2; }
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "==> creating $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); fi
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "==> installing dinoprobe[cpu,serve] in $(VENV) (a minute or more the first time)"
	@$(PIP) -e '.[cpu,serve]'
	@touch $@

# The dev extra holds both extras, so `make demo` after `make test` has nothing to install.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "==> installing dinoprobe[dev] in $(VENV) (a minute or two the first time)"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@
