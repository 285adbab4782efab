# make run    sets up and starts Tenor, embedded, on 127.0.0.1:8000
# make test   sets up and runs every check and test
# make images carries out the Dockerfiles without Docker, and runs what each image runs
# make chaos  kills, flushes and fills everything that Tenor rests on, under 500 turns each
# make scaling measures what a turn costs on this machine, and writes the numbers of docs/scaling.md
# make setup  only creates .venv and installs

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test lint chaos images scaling

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[models,embedded,offline,training,bench,dev]"
	@touch $@

run: setup
	@$(BIN)/tenor run

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(BIN)/pytest --numprocesses=2 --dist=worksteal

images: setup
	$(BIN)/pytest -m images --numprocesses=0 tests/acceptance/test_images.py

chaos: setup
	CHAOS_TURNS=500 CHAOS_RECOVERY_S=30 $(BIN)/pytest tests/acceptance/test_chaos.py

scaling: setup
	$(BIN)/tenor bench stages tests/assets/*.ogg --rounds 5 --turns 200 --out services/capacity/costs.yaml
	$(BIN)/python docs/make_scaling.py
