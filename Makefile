# One command sets everything up and does the work: make demo, make dev, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := .venv-lock/bin/uv
KEEP   ?=

# Dozens of processes start: none should compile the project again, even if the shell's environment disables bytecode.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Print every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' \
	  || { echo "ingest_project needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

# uv installs in seconds, pip in minutes. If uv cannot reach the packages, e.g. with an index that only pip is configured
# for, pip does it. Only the imported modules are compiled then.
INSTALLER := $(VENV)/installer/bin/uv
install = UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(INSTALLER) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/$(1).txt 2> $(VENV)/uv.log \
  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/$(1).txt

$(INSTALLER): requirements/lock.txt | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/installer --require-hashes -r requirements/lock.txt
	@touch $@

$(VENV)/.runtime-installed: requirements/runtime.txt pyproject.toml | $(INSTALLER)
	@echo "Installing the pinned packages into $(VENV) (once; about a minute) ..."
	@$(call install,runtime)
	@$(INSTALLER) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . 2> $(VENV)/uv.log \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-installed: requirements/dev.txt $(VENV)/.runtime-installed
	@echo "Installing the pinned test packages into $(VENV) ..."
	@$(call install,dev)
	@touch $@

.PHONY: setup
setup: $(VENV)/.runtime-installed ## Install the project and its pinned packages into .venv

.PHONY: demo
demo: setup ## Run the whole flow on dummy_data, print what happened; KEEP=1 stays up with the UI
	@$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

.PHONY: dev
dev: setup ## Start broker, PostgreSQL and Dagster, and stay
	@$(BIN)/ingest dev

.PHONY: test
test: $(VENV)/.dev-installed ## Set up and run every check and test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs=2 types tests

# Side by side: types and imports take a minute of one core, and the tests wait for each other at times.
.PHONY: types tests
types: $(VENV)/.dev-installed
	@$(BIN)/lint-imports
	@$(BIN)/mypy

tests: $(VENV)/.dev-installed
	@$(BIN)/python -m pytest

.PHONY: test-all
test-all: $(VENV)/.dev-installed ## Run every test, those that take minutes included
	@$(BIN)/python -m pytest -m "long or not long"

.PHONY: image-test
image-test: $(VENV)/.dev-installed ## Build the image without a registry and run the Compose file's processes in it (root, Debian)
	@$(BIN)/python -m ingest_project_tests.image.building

.PHONY: fuzz
fuzz: $(VENV)/.dev-installed ## Try all decoders and parsers with random inputs; MINUTES=10
	@$(BIN)/python -m ingest_project_tests.fuzz --minutes $(or $(MINUTES),10)

.PHONY: screenshots
screenshots: $(VENV)/.dev-installed ## Take the pictures of the Dagster UI and of the console in docs/images again
	@CI=true KEEP_SCREENSHOTS=docs/images $(BIN)/python -m pytest -n 0 -m "long or not long" \
	  ingest_project_tests/after_a_demo/test_dagster_ui.py
	@CI=true KEEP_SCREENSHOTS=docs/images $(BIN)/python -m pytest -n 0 -m long \
	  ingest_project_tests/operations/test_pages.py ingest_project_tests/operations/test_dashboard.py

.PHONY: audit
audit: ## Ask PyPI for known vulnerabilities of the pinned packages (needs the network; make test does not)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install \
	  --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/audit.txt; }
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/runtime.txt
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/kubernetes.txt

.PHONY: licences
licences: $(VENV)/.dev-installed ## Write the list of licences, docs/licences.md
	@$(BIN)/python -m ingest_project_tests.licences > docs/licences.md

.PHONY: size
size: $(VENV)/.dev-installed ## Print files, modules and code lines of each folder
	@$(BIN)/python -m ingest_project_tests.size

.PHONY: data-model
data-model: $(VENV)/.dev-installed ## Write the tables and their columns, docs/data-model.md
	@$(BIN)/python -m ingest_project_tests.data_model > docs/data-model.md

.PHONY: messages
messages: $(VENV)/.dev-installed ## Write the topics and their messages, docs/messages.md
	@$(BIN)/python -m ingest_project_tests.message_reference > docs/messages.md

.PHONY: monitoring-files
monitoring-files: $(VENV)/.dev-installed ## Write dashboards, alert rules and the table of metrics
	@$(BIN)/python -m ingest_project_tests.monitoring

.PHONY: format
format: $(VENV)/.dev-installed ## Format the code and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: lock
lock: ## Compile the hashed requirement files, with the pinned uv
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/lock.txt
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-strip-extras pyproject.toml requirements/build.in --output-file requirements/runtime.txt
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-strip-extras --extra dev --constraint requirements/runtime.txt pyproject.toml requirements/build.in \
	  --output-file requirements/dev.txt
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-strip-extras --extra kubernetes --constraint requirements/dev.txt pyproject.toml requirements/build.in \
	  --output-file requirements/kubernetes.txt
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-strip-extras requirements/audit.in --output-file requirements/audit.txt
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-strip-extras requirements/lock.in --output-file requirements/lock.txt

.PHONY: clean
clean: ## Remove the environment and all local state (stored rows too)
	@rm -rf $(VENV) .venv-audit .venv-lock .ingest

include benchmarks/targets.mk
