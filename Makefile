# make setup | demo | test | test-slow | faults | bench | secrets | compose-test, on a machine with Python >= 3.11 and make

PYTHON ?= python3
BIN := .venv/bin
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "gptjobs needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 2; }

.PHONY: setup demo test test-slow unit faults bench secrets compose-test lint clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(NEW_ENOUGH)
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || \
		{ echo "no venv could be made; on Debian: apt-get install python3-venv"; exit 2; }
	@echo "installing into .venv; about a minute and a half"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

demo: setup
	$(BIN)/gptjobs demo

test: setup lint
	$(BIN)/pytest -q -rs -m "not long and not slow and not compose" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/pytest -q -rs -m slow

unit: setup
	$(BIN)/pytest -q tests/unit

faults: setup
	$(BIN)/pytest -q -rs tests/faults

# make bench NANOGPT_DIR=../nanoGPT, on an idle machine; with BENCH=short five minutes
bench: export NANOGPT_DIR := $(NANOGPT_DIR)
bench: setup
ifeq ($(BENCH),short)
	$(BIN)/python -m bench.train --short
else
	$(BIN)/python -m bench.train
	$(BIN)/python -m bench.loss
endif

# before the first `docker compose up`, where your uid is not 1000; needs no set-up, and leaves no bytecode
secrets:
	@$(NEW_ENOUGH)
	@PYTHONPATH=. $(PYTHON) -B deploy/setup.py --env .

# with a Docker engine; without one it says "skipped"
compose-test: setup
	$(BIN)/pytest -q -rs --durations=0 tests/compose

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv demo
