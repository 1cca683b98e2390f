# SPDX-License-Identifier: Apache-2.0
# A bare Debian 12 with git, Python 3.11 and root is enough: missing packages are installed and listed.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST_FLAGS ?=
# The files on which the installed package depends, besides the lock.
INSTALLED := pyproject.toml hatch_build.py .ci/python-venv $(wildcard multus_py/install/shim/*.[ch])
LOWEST := .venv-lowest
# The tests that use the third-party packages of pyproject.toml; for all tests set LOWEST_TESTS=tests.
LOWEST_TESTS ?= tests/agent/test_daemon.py tests/cli/test_lint.py tests/cni tests/config tests/kernel tests/kube tests/plan/test_devices.py \
	tests/test_locks.py

GUEST := $${XDG_CACHE_HOME:-/var/cache}/multus-py-guest

.PHONY: help root demo test guest check format reference venv lock lowest packages clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: root venv packages ## attach the pods of examples/ on this machine, ping across each network, remove everything
	@examples/demo.sh

root:
	@[ "$$(id -u)" = 0 ] || { echo "network namespaces need root: run 'sudo make demo'" >&2; exit 1; }

test: venv packages ## run every test that this machine can run
	$(BIN)/pytest $(PYTEST_FLAGS)

guest: root ## prepare the virtual machine with an SR-IOV NIC that tests/guest boots: QEMU and a kernel, 300 MB
	@tests/guest/prepare "$(GUEST)"

check: venv ## check lint, format, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $$(git ls-files)

format: venv ## format the code and fix lint errors that can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: venv ## write docs/reference from the declarations of the config keys
	$(BIN)/python -m multus_py.config.reference docs/reference

venv: $(STAMP) ## create .venv with the package and the development tools

$(STAMP): requirements/dev.txt $(INSTALLED) | packages
	@.ci/python-venv .venv requirements/dev.txt $(PYTHON)
	@touch $@

lock: venv ## update the locks in requirements/ from pyproject.toml
	@.ci/lock

lowest: $(LOWEST)/.installed ## test the third-party packages in the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/pytest $(PYTEST_FLAGS) $(LOWEST_TESTS)

$(LOWEST)/.installed: requirements/lowest.txt $(INSTALLED) | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "the lowest versions are those of Python 3.11. Try: make PYTHON=python3.11 lowest" >&2; exit 1; }
	@.ci/python-venv $(LOWEST) requirements/lowest.txt $(PYTHON)
	@touch $@

packages: ## install missing Debian packages that demo and tests use
	@.ci/debian-packages

clean: ## remove virtual environments, caches and built files
	rm -rf .venv $(LOWEST) build dist multus_py/install/shim/bin .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
