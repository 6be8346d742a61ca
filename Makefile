# foldtrain: everything runs in .venv, with the versions in constraints.txt. Needs make, and Python 3.11, 3.12 or 3.13 with venv.

VENV := .venv
INSTALLED := $(VENV)/.installed
# Processes of pytest-xdist, for a machine with two cores (docs/decisions.md, "The fast set is a budget of CPU").
PROCESSES ?= 2
FAST_PROCESSES ?= 3
PYTHON ?= python3.11 python3.12 python3.13 python3
VERSIONS := 3.11 3.12 3.13

# PIP_CONSTRAINT reaches the environments in which pip builds packages, too.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python keeps what it compiled, whatever the shell says: else each process of the tests compiles the packages anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast test-gpu check format clean ci-system

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install foldtrain with all it needs

quickstart: $(INSTALLED) ## raw images to generated images, on this machine
	$(VENV)/bin/foldtrain quickstart

test: $(INSTALLED) ## all tests
	$(VENV)/bin/pytest -n $(PROCESSES) --dist loadgroup --allowed-skips tests/allowed_skips.txt

test-fast: $(INSTALLED) ## the tests that are cheap, and start no Ray and no server (tests/fast_set.py)
	$(VENV)/bin/pytest -n $(FAST_PROCESSES) --dist loadgroup -m "not slow" --hypothesis-profile few --dear 1 --allowed-skips tests/allowed_skips.txt

test-gpu: $(INSTALLED) ## the tests that only a GPU can run, in one process; without one they are skipped
	$(VENV)/bin/pytest -m gpu

check: $(INSTALLED) ## lint, format, types, and which package may import which
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	for version in $(VERSIONS); do $(VENV)/bin/mypy --python-version $$version || exit 1; done
	$(VENV)/bin/lint-imports

format: $(INSTALLED) ## rewrite the sources in the one format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

SYSTEM_PACKAGES := slurmctld slurmd slurm-client munge chromium nftables
SYSTEM_COMMANDS := slurmctld slurmd munged sbatch chromium nft

ci-system: ## what tests need beside Python: Slurm, Chromium and nft. Changes nothing where they are, or without apt-get or root
	@missing=; for name in $(SYSTEM_COMMANDS); do PATH=$$PATH:/usr/sbin command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
	  echo "ci-system: no apt-get, or not root: tests that need$$missing are skipped"; exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; install="apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES)"; \
	{ $$install || { apt-get update -qq && $$install; }; } >/dev/null 2>&1 || \
	  echo "ci-system: apt-get cannot install $(SYSTEM_PACKAGES): tests that need them are skipped"

clean: ## remove .venv and caches; runs are kept
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV): 6.7 GB, once. torch alone takes a while to download."
	$(VENV)/bin/python -m pip install --no-input -c constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/bin/pip:
	@for candidate in $(PYTHON); do \
	  version=$$($$candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  case " $(VERSIONS) " in *" $$version "*) ;; *) continue;; esac; \
	  echo "Creating $(VENV) with $$($$candidate --version)"; \
	  $$candidate -m venv --clear $(VENV) && exit 0; \
	  rm -rf $(VENV); \
	  echo "$$candidate cannot create a virtual environment: apt-get install python$$version-venv, or name another: make PYTHON=..." >&2; \
	done; \
	echo "foldtrain needs Python 3.11, 3.12 or 3.13 with its venv module, and none of these is: $(PYTHON)." >&2; \
	echo "Install it (apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1
