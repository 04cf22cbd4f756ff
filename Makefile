# Two commands are all one needs: `make demo` (set up, distil, report) and `make test` (set up, test). Between two
# edits `make check` (linter, types and the tests that find most) says within a minute what broke.
# The set-up lives in .venv and is made again only when what it depends on has changed.
#
#   make docs                         the documentation, in site/index.html
#   make demo ARGS="--scale smoke"    extra options for the main job
#   make PYTHON=python3.12 test       another interpreter (3.11 or later) for a new .venv

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Two processes of one thread each, a file's tests together, for its fixtures' sake, the longest files first
# (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
CHECKS := tests/test_architecture.py $(addprefix tests/,diffusion methods models tokenizers) \
  $(addprefix tests/data/test_,controls_text.py folder.py pairs.py survey.py) \
  $(addprefix tests/train/test_,loop.py optim.py ema_guard_log.py) \
  $(addprefix tests/ops/test_,arguments.py gradcheck.py library.py registry.py)

.PHONY: help setup demo check test lint bench docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: $(READY)

demo: $(READY)
	$(BIN)/cosmos-distill recipes/transfer1_kd_dmd2.py $(ARGS)

check: lint
	$(PYTEST) --quiet $(CHECKS) $(ARGS)

test: lint
	$(PYTEST) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

bench: $(READY)
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' -o python_functions='bench_*' --durations=0 $(ARGS)

# Pages, and what they read off the code; a warning ends it. Nothing of the site is fetched when it is read.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean $(ARGS)
	@echo "Open site/index.html. For the search: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf build site $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: run make PYTHON=/path/to/a/newer/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, alone: its version is pinned, so nothing later can pull in another build of it. The last line keeps
# the film and the networks of the measures in the user's cache: what follows needs no network.
$(READY): $(BIN)/python python/cosmos_distill/data/packages.py pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[video,log,demo,test]'
	$(BIN)/python -m cosmos_distill.data.packages
	@touch $@

$(VENV)/docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt 'mkdocs>=1.6,<2' mkdocs-material 'mkdocstrings[python]'
	@touch $@
