# Every target sets up what it needs: `make demo` on a fresh clone is the whole installation.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench

.PHONY: demo test test-all lint bench docs clean

$(READY): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	touch $@

demo: $(READY)          ## train on Latin glyphs, test on scripts never seen; figures in demo_out/
	$(BIN)/fsc_demo

test: $(READY)          ## the whole suite but slow and gpu tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(READY)      ## slow tests too
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not gpu'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(BENCH_READY)   ## speed as ratios against peers and limits
	$(BIN)/python -m benchmarks

docs: $(READY)          ## run every notebook top to bottom
	$(BIN)/python -m nbs.run

clean:
	rm -rf $(VENV) build dist *.egg-info demo_out
