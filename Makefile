# `make` alone prints what there is.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Compiled modules are kept whatever the environment says: tests start Python hundreds of times.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run test rest bench soak faults overload costs fuzz check lint fmt types dist audit clean

ROOM_TESTS = $(if $(ROOM),tests/$(ROOM))
# What `make test` leaves to `make rest`; each mark has its sentence in pyproject.toml.
SLOW := browser or docs or judges or load or serve or typescript or walks
PYTEST = $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

help: ## Print this help.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

run: $(VENV)/run ## Install, then serve on 127.0.0.1:8787 with a PostgreSQL of its own in .data.
	@exec $(BIN)/keystead serve

test: $(VENV)/dev ## Test every rule against a PostgreSQL of its own; ROOM=custody for one room, ARGS for pytest.
	@$(PYTEST) -m "not ($(SLOW))" $(ROOM_TESTS) $(ARGS)

rest: $(VENV)/dev ## Run what `make test` leaves out: kills, SDKs, judges, walks and pasted documentation.
	@LONG=1 $(PYTEST) -m "$(SLOW) or properties" $(ROOM_TESTS) $(ARGS)

bench: $(VENV)/dev ## Measure the speed beside its references; writes docs/benchmarks.md (needs wrk).
	@PYTHONPATH=tests $(BIN)/python tests/bench/run.py --write $(ARGS)

soak: $(VENV)/dev ## Kill the server 500 times under load and account for every answer; writes docs/reliability.md.
	@PYTHONPATH=tests $(BIN)/python tests/soak/run.py --kills 500 --write $(ARGS)

faults: $(VENV)/dev ## Break the database in every way and measure the recovery; writes docs/reliability.md.
	@PYTHONPATH=tests $(BIN)/python tests/soak/faults.py --write $(ARGS)

overload: $(VENV)/dev ## Send twice what the server can do for a minute; writes docs/reliability.md.
	@PYTHONPATH=tests $(BIN)/python tests/soak/overload.py --write $(ARGS)

costs: $(VENV)/dev ## Measure the dearest requests of an account that is full, in CPU and memory.
	@PYTHONPATH=tests $(BIN)/python tests/bench/costs.py $(ARGS)

fuzz: $(VENV)/dev ## Feed every parser with mutations for ten minutes.
	@FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/web/test_fuzz.py

check: lint types test rest ## Lint, types and all tests: what CI runs.

lint: $(VENV)/dev ## Find mistakes and unformatted files.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache

fmt: $(VENV)/dev ## Format the code.
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: $(VENV)/dev ## Check the types.
	@$(BIN)/mypy

dist: $(VENV)/dist ## Build wheel, sdist and their list of parts (SBOM) from the last commit into dist/.
	@rm -rf dist build && mkdir -p build/tree
	@git archive --output=build/tree.tar HEAD && tar -xf build/tree.tar -C build/tree
	@$(BIN)/python -m build --outdir dist build/tree >build/log || { cat build/log >&2; exit 1; }
	@$(BIN)/python .ci/sbom.py dist/*.whl
	@ls dist

audit: $(VENV)/dist ## Look for known faults of the pinned packages in PyPI's advisories.
	@$(BIN)/python .ci/audit.py

clean: ## Remove what the build made; .data with your keys stays.
	@rm -rf $(VENV) .cache build dist *.egg-info app/keystead/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Keystead needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes about a minute."
	@$(PIP) --editable '.'
	@touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes about a minute."
	@$(PIP) --editable '.[test,lint]'
	@touch $@ $(VENV)/run

$(VENV)/dist: $(VENV)/dev
	@$(PIP) --editable '.[dist]'
	@touch $@
