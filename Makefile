# How everything is run. Needs make and a Python >= 3.11; `make series` and `make test` build the rest in .venv first.
#
#   make series PROFILE=gpu SEED=1 ONLY=04,05      another scale, another seed, some notebooks
#   make env PYTHON=python3.12                     another interpreter

PYTHON  ?= python3
PROFILE ?= cpu
SEED    ?= 0
ONLY    ?=
NAME    ?= dose_real
WORKERS ?= 2
# more options of JupyterLab: LAB=--ip=0.0.0.0 reaches it from outside a container
LAB     ?=
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
# containers run as root, and JupyterLab does not unless it is told so
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help env series study test lab claims notebooks figures report reference check check-all lint types dist site browser reading architectures lock bench bench-gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

env: $(READY)  ## the environment in .venv, and the models and texts in the cache

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "robustpo-kit needs Python 3.11 or newer, and $(PYTHON) is not: install one, or name it: make env PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "making the environment in $(VENV) (once; about 2 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/robustpo doctor --fetch
	@touch $@

series: env  ## run the notebooks headless: PROFILE=cpu SEED=0 ONLY=04,05; what is finished is kept
	$(BIN)/robustpo series --resume --profile $(PROFILE) --seed $(SEED) $(if $(ONLY),--only $(ONLY)) $(if $(filter cpu,$(PROFILE)),--workers $(WORKERS))

study: env  ## run the study data/studies/NAME.json: NAME=dose_real; what is finished is kept
	$(BIN)/robustpo study $(NAME)

test: env  ## unit tests, nbval over every notebook under profile smoke, and the coverage of both
	$(BIN)/python -m pytest -q -n $(WORKERS) --nbval --nbval-current-env --nbval-cell-timeout 300 --cov=robustpo_kit notebooks tests

lab: env  ## JupyterLab, open where the series starts; kernels have profile demo
	@echo "A browser opens on notebook 00: Run > Run All Cells. If none opens, take the address with 127.0.0.1 below."
	@test -z "$(AS_ROOT)" || echo "You are root, which JupyterLab refuses; it is allowed here because containers have no other user."
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(AS_ROOT) $(LAB)

claims: env  ## write what the tables say into the sentences of README and text notebooks
	$(BIN)/python tests/claims.py --write

notebooks: env  ## execute the text notebooks that changed into notebooks/*.ipynb (profile smoke)
	$(BIN)/robustpo notebooks

figures: env  ## draw the committed figures again, each of the table beside it
	$(BIN)/python -c "from robustpo_kit import paths, plots; print(*plots.redraw(paths.FIGURES / 'reference'), sep='\n')"

report: series  ## the executed notebooks of the series as HTML pages in runs/PROFILE/html
	$(BIN)/jupyter nbconvert --log-level WARN --to html --output-dir runs/$(PROFILE)/html runs/$(PROFILE)/notebooks/*.ipynb
	@ls runs/$(PROFILE)/html/*.html

reference: series  ## copy the tables and figures of a finished series to where they are committed
	$(BIN)/robustpo series --profile $(PROFILE) --publish

check: env  ## everything that CI runs: lint, types, test, dist, browser
	@.ci/run

check-all: check  ## check, and what takes long: every architecture, ten mutants by nbval, ten kills of a series
	$(BIN)/python -m pytest -q -m slow tests
	$(BIN)/python tests/notebook_mutation.py
	$(BIN)/python tests/killed_series.py --kills 10

lint: env  ## ruff: its rules on everything, its format on all but the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env  ## mypy on the package
	$(BIN)/mypy

dist: env  ## wheel and sdist in dist/, the wheel tried in an empty environment outside the tree
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	@.ci/try-wheel $(BIN)/python dist/*.whl

site: env  ## the static site in site/: documents, notebooks, things to move, the papers' tables, the API
	$(BIN)/python docs/pages/build.py site

browser: site  ## notebooks in JupyterLab and the pages of site/ in a real browser: Chromium, installed where apt can
	@command -v chromium chromium-browser google-chrome > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
	  && apt-get update -qq && apt-get install -qq -y chromium > /dev/null; } || { \
	  echo "make browser needs Chromium on PATH: install it (Debian, Ubuntu: sudo apt install chromium)" >&2; exit 2; }
	ROBUSTPO_SITE=site $(BIN)/python -m pytest -q -m browser tests

reading: env  ## measure how the package reads, into the table of CONTRIBUTING.md
	$(BIN)/python tests/reading.py --write CONTRIBUTING.md

architectures: env  ## how each causal language model of transformers is computed: its table and docs/architectures.md
	$(BIN)/python tests/architectures.py --write

bench: env  ## throughput and memory against TRL on the same work
	$(BIN)/robustpo bench

bench-gpu: env  ## all that a GPU is asked for: both models, every sampling backend that is installed
	$(BIN)/robustpo bench --model smollm2-135m-instruct,llama-8b --penalty 1 \
	  --backends kit,continuous,vllm,transformers --out data/results/gpu/bench

lock:  ## write requirements.lock from what .venv holds: versions only
	$(BIN)/python -m pip list --format=freeze --exclude pip --exclude setuptools --exclude robustpo-kit \
	  | sed -E 's/\+[A-Za-z0-9.]+$$//; /^(nvidia-|cuda-|triton==)/d' > requirements.lock.tmp
	mv requirements.lock.tmp requirements.lock
	@touch $(READY)

clean:  ## remove runs and caches; keeps .venv, data and committed results
	rm -rf runs build dist site .coverage* .ruff_cache .mypy_cache .hypothesis
