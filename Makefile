# Every target sets up what it needs: `make demo` on a fresh clone is the whole installation.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
INSTALL := $(BIN)/python .ci/install.py
READY  := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
DOCS_READY  := $(VENV)/.ready-docs

.PHONY: ready demo test test-slow test-all test-gpu lint tour notebooks notebooks-quick docs mutants attack bench bench-gpu dist clean

$(READY): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	touch $@

$(BENCH_READY): $(READY)
	$(INSTALL) -e '.[bench]'
	touch $@

$(DOCS_READY): $(READY)
	$(INSTALL) -e '.[docs]'
	touch $@

ready: $(DOCS_READY)    ## all that the targets need, in .venv

demo: $(READY)          ## train on Latin glyphs, test on scripts never seen; figures in demo_out/
	$(BIN)/fsc_demo

test: $(READY)          ## the whole suite but slow and gpu tests, with its line coverage, subprocesses included; below 90 % fails
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report term:skip-covered

test-slow: $(READY)     ## slow tests too
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not gpu'

test-all: test-slow notebooks mutants attack ## all that needs no GPU, before a release (hours)

test-gpu: $(READY)      ## what needs a CUDA device, against the CPU where both can tell
	$(BIN)/python -m pytest -n 8 -m gpu

lint: $(READY)          ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(BENCH_READY)   ## speed as ratios against peers and limits
	$(BIN)/python -m benchmarks

bench-gpu: $(BENCH_READY) ## all that a machine with a GPU has to show, in ten minutes: tests, then speed with its limits
	$(BIN)/python -m benchmarks gpu

tour: $(READY)          ## the first hour: README and recipes as a new user follows them, small
	$(BIN)/python -m tour

notebooks: $(READY)     ## every notebook, top to bottom
	$(BIN)/python -m nbs.run

notebooks-quick: $(READY) ## the first alone
	$(BIN)/python -m nbs.run 01

docs: $(DOCS_READY)     ## the site in build/docs; broken links fail
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --conf-dir docs --quiet . build/docs

mutants: $(READY)       ## rules, methods and callbacks with mistakes put in, by mutmut (hours; ONLY='fsc_fastai.explain.rules*' for some)
	$(INSTALL) mutmut
	$(BIN)/mutmut run $(ONLY)
	$(BIN)/mutmut results

attack: $(READY)        ## broken bundles, hostile requests, killed trainings, thousands of each (hours); one that fails fails it
	$(BIN)/python -m tests.attacks

dist: $(READY)          ## the source archive and the wheel in dist/, as an index would take them; their content is a test's
	$(INSTALL) build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest -q tests/test_dist.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo_out mutants .coverage*
