# `make` lists what can be done.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# Tests run side by side, each on one thread: torch's threads wait for each other more than they help on networks this small.
SIDE_BY_SIDE := OMP_NUM_THREADS=1
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
COVERAGE ?= --cov --cov-report=term

.PHONY: help demo test test-colab test-lowest lint house bench notebooks export docs check-docs clean

help:  ## list what can be done
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# On Linux the newest torch brings gigabytes of CUDA; the tested version serves every processor.
$(STAMP): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## tune on the sample clip, edit it four ways, write demo/index.html
	$(BIN)/tune-a-video demo --out demo

test: $(STAMP)  ## every notebook and every test
	$(SIDE_BY_SIDE) $(BIN)/pytest $(PYTEST_ARGS) $(COVERAGE)

lint: $(STAMP)  ## is the code plain, and are its types right?
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

house: $(STAMP)  ## who imports whom, how long each module is, what is dense
	$(BIN)/python tests/house.py

# Colab brings its own versions of the libraries, and a chapter there runs on those. COLAB_TORCH=2.11.0 where that is to be had without CUDA.
COLAB_TORCH ?= 2.13.0
COLAB_TESTS ?= tests/test_package.py tests/test_show.py tests/test_report.py tests/test_attention.py tests/test_inflate.py tests/test_train.py tests/test_tune.py tests/test_tuned.py \
  tests/test_pipeline.py tests/test_diffusers.py tests/test_bases.py tests/test_memory.py tests/test_judge.py tests/test_metrics.py tests/test_evaluate.py tests/test_ablation.py tests/test_cli.py \
  "tests/test_notebooks.py::test_runs_with_its_exercises_solved[87_show]"
.venv-colab/.ready: settings.ini setup.py pyproject.toml constraints-colab.txt
	$(PYTHON) -m venv .venv-colab
	.venv-colab/bin/pip install --quiet --disable-pip-version-check -c constraints-colab.txt torch==$(COLAB_TORCH)
	.venv-colab/bin/pip install --quiet --disable-pip-version-check -c constraints-colab.txt -e '.[dev]'
	@touch $@

test-colab: .venv-colab/.ready  ## the tests that matter under Google Colab's versions of the libraries
	$(SIDE_BY_SIDE) .venv-colab/bin/pytest $(PYTEST_ARGS) -k "not compiled" $(COLAB_TESTS)

# The lower bounds of settings.ini, each as it stands there; torch only if LOWEST_TORCH says so, for its older builds bring gigabytes of CUDA.
LOWEST_TORCH ?= 2.13.0
LOWEST_TESTS ?= tests/test_package.py tests/test_attention.py tests/test_inflate.py tests/test_tune.py tests/test_pipeline.py tests/test_diffusers.py tests/test_clips.py
.venv-lowest/.ready: settings.ini setup.py pyproject.toml tests/lowest.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check torch==$(LOWEST_TORCH)
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt -e . pytest pytest-xdist fastcore
	@touch $@

test-lowest: .venv-lowest/.ready  ## the tests that matter under the oldest libraries that settings.ini allows
	$(SIDE_BY_SIDE) .venv-lowest/bin/pytest $(PYTEST_ARGS) -k "not compiled" $(LOWEST_TESTS)

bench: $(STAMP)  ## time this library, beside the authors' code if ARGS name it: see benchmarks/README.md
	$(BIN)/python benchmarks/run.py $(ARGS)

notebooks: $(STAMP)  ## run all chapters from the top and save their outputs
	$(BIN)/python tests/run_notebooks.py nbs/*.ipynb
	$(BIN)/nbdev-clean

export: $(STAMP)  ## write package, badges and README from the notebooks, and clean them
	$(BIN)/python tests/make_badges.py
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python web/make_sidebar.py
	$(BIN)/python tests/make_readme.py

docs: $(STAMP)  ## render the site into _docs/ (needs Quarto)
	@command -v quarto >/dev/null || { echo "quarto is not on PATH: get it from https://quarto.org/docs/get-started, then run make docs again" >&2; exit 1; }
	rm -rf _docs .quarto
	QUARTO_PYTHON="$(CURDIR)/$(BIN)/python" quarto render

check-docs: $(STAMP)  ## what can be checked of the book without Quarto, in seconds
	$(BIN)/python tests/check_docs.py

clean:  ## remove what can be made again
	rm -rf .venv .venv-colab .venv-lowest _docs _screenshots .quarto api web/figures.qmd build dist *.egg-info demo
