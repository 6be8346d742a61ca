# foldtrain: everything runs in .venv, with the versions in constraints.txt. Needs make, python3.11 and python3.11-venv.

VENV := .venv
INSTALLED := $(VENV)/.installed
PYTHON ?= python3.11 python3

# PIP_CONSTRAINT reaches the environments in which pip builds packages, too.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check format clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install foldtrain with all it needs

quickstart: $(INSTALLED) ## raw images to generated images, on this machine
	$(VENV)/bin/foldtrain quickstart

test: $(INSTALLED) ## all tests, on two processes
	$(VENV)/bin/pytest -n 2 --dist loadgroup

check: $(INSTALLED) ## lint, format, types, and which package may import which
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(INSTALLED) ## rewrite the sources in the one format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove .venv and caches; runs are kept
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV): 6.7 GB, once. torch alone takes a while to download."
	$(VENV)/bin/python -m pip install --no-input -c constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/bin/pip:
	@for candidate in $(PYTHON); do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$candidate --version)"; \
	    $$candidate -m venv --clear $(VENV) && exit 0; \
	    echo "$$candidate cannot create a virtual environment: apt-get install python3.11-venv" >&2; exit 1; \
	  fi; \
	done; \
	echo "foldtrain needs Python 3.11, and none of these is: $(PYTHON)." >&2; \
	echo "Install it (apt-get install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
