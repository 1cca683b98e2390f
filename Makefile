# SPDX-License-Identifier: Apache-2.0
# A bare Debian 12 with git, Python 3.11 and root is enough: what is missing is installed, and said.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST_FLAGS ?=

GUEST := $${XDG_CACHE_HOME:-/var/cache}/multus-py-guest

.PHONY: help root demo test guest check format venv packages clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: root venv packages ## two pods with four networks each, on this machine; nothing stays behind
	@examples/demo.sh

root:
	@[ "$$(id -u)" = 0 ] || { echo "network namespaces need root: run 'sudo make demo'" >&2; exit 1; }

test: venv packages ## every test that this machine can run
	$(BIN)/pytest $(PYTEST_FLAGS)

guest: root ## prepare the virtual machine with an SR-IOV NIC that tests/guest boots: QEMU and a kernel, 300 MB
	@tests/guest/prepare "$(GUEST)"

check: venv ## lint, format, types, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $$(git ls-files)

format: venv ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(STAMP) ## the virtual environment with the package and the development tools

$(STAMP): pyproject.toml hatch_build.py $(wildcard multus_py/shim/*.[ch]) | packages
	@.ci/python-venv $(PYTHON)
	@echo "installing multus-py and its development tools into .venv"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

packages: ## Debian's packages that demo and tests use, those that are missing
	@.ci/debian-packages

clean: ## remove what was built here
	rm -rf .venv build dist multus_py/shim/bin .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
