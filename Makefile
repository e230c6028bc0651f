# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
# Processes that share the tests.
JOBS ?= 2

.PHONY: demo serve test check format docs docs-tables soak clean

$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(DONE)

demo: $(DONE)  ## train, prune, export, serve and query ten digits
	$(BIN)/python -m benchmarks.demo

serve: $(DONE)  ## serve the bundle that `make demo` made (BUNDLE=... for another)
	$(BIN)/sensai serve $(or $(BUNDLE),bundles/digits)

check: $(DONE)  ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check  ## everything that CI runs
	$(BIN)/python -m pytest -m 'not soak' --numprocesses $(JOBS) --dist worksteal

soak: $(DONE)  ## what takes longer; figures go to benchmarks/results/ (SOAK_SECONDS=3 tries it; then to runs/soak/)
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m pytest -m 'hypothesis and not soak' --hypothesis-profile soak

format: $(DONE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DONE)  ## the documentation site, in site/; no network is needed
	$(BIN)/python docs/site/stage.py
	$(BIN)/zensical build --clean --strict

docs-tables: $(DONE)  ## write the tables of options in docs/ anew, from what declares them
	$(BIN)/python -m sensai_serve.cli.tables

clean:
	rm -rf $(VENV) bundles runs build site
