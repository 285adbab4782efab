# make run     installs what running needs into .venv, then starts Tenor, embedded, on 127.0.0.1:8000
# make test    also installs what the tests need, then runs every check and test
# make types   checks the types with pyright
# make fix     repairs what ruff can repair, and formats the code
# make docs    builds the documentation into build/site
# make unit    runs the tests that need no model and no server, in seconds
#
# make setup   only installs what running needs; make setup-dev also what the tests, benchmarks and training need
# make smoke   installs Tenor under each interpreter of PYTHONS and analyses a text and a recording with each
# make images  carries out the Dockerfiles without Docker, and runs what each image runs
# make chaos   kills, flushes and fills everything that Tenor depends on, under 500 turns each
# make scaling measures what a turn costs on this machine, and writes the numbers of docs/scaling.md
# make constraints  pins every dependency anew, for all supported interpreters and platforms
#
# Variables:
#   PYTHON=python3.13      the interpreter of .venv: 3.11, 3.12 or 3.13
#   TORCH=cpu              PyTorch's CPU build: on Linux the default build brings CUDA libraries of several GB
#   ARGS="--port 9000"     what make run passes to tenor run, and make test and make unit to pytest

PYTHON ?= python3
PYTHONS ?= python3.12 python3.13
TORCH ?=
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PIP_INSTALL := $(BIN)/pip install --constraint constraints.txt
TORCH_BUILD := $(if $(TORCH),--no-deps --index-url https://download.pytorch.org/whl/$(TORCH))

.PHONY: setup setup-dev python run test unit lint types fix docs smoke smoke-one images chaos scaling constraints

setup: $(VENV)/run-$(VERSION)
setup-dev: $(VENV)/dev-$(VERSION)

# The interpreter is checked before anything is downloaded.
python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("Tenor runs on Python 3.11, 3.12 and 3.13, and $(PYTHON) is %d.%d. Choose another one: make run PYTHON=python3.13" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) lacks its module venv. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

# A .venv of another interpreter is replaced. PyTorch comes first, because its build may come from an index of its own.
$(VENV)/run-$(VERSION): pyproject.toml constraints.txt | python
	@test -n "$(TORCH)" || test "$$(uname)" != Linux || command -v nvidia-smi > /dev/null || \
		echo "No NVIDIA GPU was found. PyTorch's default build brings CUDA libraries of several GB: make setup TORCH=cpu avoids them."
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(VENV)
	$(PIP_INSTALL) $(TORCH_BUILD) torch
	$(PIP_INSTALL) --editable ".[models,embedded,offline]"
	@touch $@

$(VENV)/dev-$(VERSION): $(VENV)/run-$(VERSION)
	$(PIP_INSTALL) --editable ".[models,embedded,offline,training,bench,docs,dev]"
	@touch $@

run: setup
	@$(BIN)/tenor run $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

types: setup-dev
	$(BIN)/pyright $(ARGS)

fix: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint
	$(BIN)/pytest --numprocesses=2 --dist=worksteal $(ARGS)

unit: setup-dev
	$(BIN)/pytest --numprocesses=2 --dist=worksteal -m "not slow" tests/unit $(ARGS)

smoke:
	@set -e; for python in $(PYTHONS); do $(MAKE) --no-print-directory smoke-one PYTHON=$$python; done

smoke-one: python
	@$(MAKE) --no-print-directory setup VENV=.smoke/$(VERSION)
	.smoke/$(VERSION)/bin/python -m tests.smoke

images: setup-dev
	$(BIN)/pytest -m images --numprocesses=0 tests/acceptance/test_images.py

chaos: setup-dev
	CHAOS_TURNS=500 CHAOS_RECOVERY_S=30 $(BIN)/pytest tests/acceptance/test_chaos.py

scaling: setup-dev
	$(BIN)/tenor bench stages tests/assets/*.ogg --rounds 5 --turns 200 --out benchmarks/capacity/costs.yaml
	$(BIN)/python docs/make_scaling.py

constraints: setup-dev
	$(BIN)/uv pip compile --universal --python-version 3.11 --fork-strategy fewest --all-extras --no-emit-package tenor \
		--no-annotate --upgrade --quiet --custom-compile-command "make constraints" --constraint constraints.in \
		--output-file constraints.txt pyproject.toml
