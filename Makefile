# `make demo` runs the whole pipeline on synthetic videos, `make test` runs linter, type checker and tests. Both create
# .venv and install into it; nothing else on the machine changes. `make test-cluster`, for work on cluster code, also
# installs Slurm if it runs as root and apt-get is available.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without a GPU, the constraints pin torch's CPU build; with one, pip installs the newest build.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c .ci/constraints-cpu.txt) $(OLDEST)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
DEMO := build/demo
EVIDENCE := build/evidence
SIZE := small
# Small runs leave cores idle; large ones fill a GPU.
JOBS := $(if $(filter small,$(SIZE)),2,1)
DEMO_RETRIEVAL := --target label --target group

.PHONY: install install-dev demo bench evidence test test-oldest test-cluster coverage lint types build clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is required; set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing: apt-get install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-cluster: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@$(PIP) -e '.[dev,cluster]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

# Each command is echoed; run the same ones on your own videos.
demo: install
	$(BIN)/cmd-extract synthesize $(DEMO)/videos
	$(BIN)/cmd-extract run data_manifests/demo.csv $(DEMO)/shards --root $(DEMO)/videos
	$(BIN)/cmd-train pretrain $(DEMO)/shards $(DEMO)/run --recipe demo
	$(BIN)/cmd-eval retrieval $(DEMO)/run $(DEMO)/shards $(DEMO_RETRIEVAL) --untrained --output $(DEMO)/run/eval/untrained.json
	$(BIN)/cmd-eval retrieval $(DEMO)/run $(DEMO)/shards $(DEMO_RETRIEVAL) --output $(DEMO)/run/eval/trained.json
	$(BIN)/cmd-eval baseline $(DEMO)/shards $(DEMO_RETRIEVAL) --output $(DEMO)/run/eval/motion-grids.json
	@echo
	@$(BIN)/cmd-eval compare $(DEMO)/run/eval/untrained.json $(DEMO)/run/eval/trained.json $(DEMO)/run/eval/motion-grids.json
	$(BIN)/cmd-eval report $(DEMO)/run
	@echo "Written to $(DEMO): videos/, shards/, run/ (checkpoints, metrics.jsonl, eval/ with features and results)"

# Measures speed, memory and growth of cost on an otherwise idle machine; also writes build/bench.json.
bench: install
	$(BIN)/python -m tests.benchmarks.run

# Tests the paper's claims on shards of your own labeled videos: make evidence SHARDS=... [SIZE=full]
# [EVIDENCE=folder] [JOBS=2]. About 105 minutes on two cores, resumable. BENCH=build/bench.json adds extraction speed.
ifneq ($(filter evidence,$(MAKECMDGOALS)),)
ifndef SHARDS
$(error SHARDS is not set; use `make evidence SHARDS=folder` with an output folder of `cmd-extract run`)
endif
endif
evidence: install
	$(BIN)/cmd-eval evidence "$(SHARDS)" "$(EVIDENCE)" --size $(SIZE) --jobs $(JOBS) $(if $(BENCH),--bench "$(BENCH)")
	$(BIN)/cmd-eval report "$(EVIDENCE)"

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest --numprocesses 2

# With the oldest libraries that pyproject.toml allows, in a separate virtual environment.
test-oldest:
	$(MAKE) VENV=.venv-oldest OLDEST='-c .ci/constraints-oldest.txt' install-dev
	.venv-oldest/bin/pytest --numprocesses 2

# Line coverage of the three packages, child processes included; slower than the tests alone.
coverage: install-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses 2
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

# A real Slurm with several virtual nodes and real Dask processes, all on loopback; see tests/cluster/slurm.py.
test-cluster: $(VENV)/.installed-cluster
	@tests/cluster/install-slurm
	$(BIN)/pytest tests/cluster

# Source distribution and wheel, in dist/.
build: install-dev
	$(BIN)/python -m build --quiet

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
