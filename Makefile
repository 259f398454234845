# Two commands: `make demo` runs the whole job on videos it makes itself, `make test` runs lint, types and tests.
# Both make .venv and install into it; nothing else on the machine is touched. (`make test-cluster`, for those who
# change what runs on clusters, installs Slurm as well, where root and apt-get are at hand.)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without a GPU, torch's CPU build is asked for by its version; with one, pip picks the newest build.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c .ci/constraints-cpu.txt) $(OLDEST)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
DEMO := build/demo
EVIDENCE := build/evidence
SIZE := small
# Small trainings leave cores idle; large ones fill a GPU.
AT_ONCE := $(if $(filter small,$(SIZE)),2,1)
DEMO_RETRIEVAL := --split-column split --label label --label group

.PHONY: install install-dev demo bench evidence test test-oldest test-cluster coverage lint types clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-cluster: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@$(PIP) -e '.[dev,cluster]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

# Each command is echoed: these are the ones to run on videos of your own.
demo: install
	$(BIN)/cmd-extract synthesize $(DEMO)/videos
	$(BIN)/cmd-extract run data_manifests/demo.csv $(DEMO)/shards --root $(DEMO)/videos
	$(BIN)/cmd-train pretrain $(DEMO)/shards $(DEMO)/run --recipe demo --split-column split
	$(BIN)/cmd-eval retrieval $(DEMO)/run $(DEMO)/shards $(DEMO_RETRIEVAL) --untrained --output $(DEMO)/run/eval/untrained.json
	$(BIN)/cmd-eval retrieval $(DEMO)/run $(DEMO)/shards $(DEMO_RETRIEVAL) --output $(DEMO)/run/eval/trained.json
	$(BIN)/cmd-eval baseline $(DEMO)/shards $(DEMO_RETRIEVAL) --output $(DEMO)/run/eval/motion-grids.json
	@echo
	@$(BIN)/cmd-eval compare $(DEMO)/run/eval/untrained.json $(DEMO)/run/eval/trained.json $(DEMO)/run/eval/motion-grids.json
	@echo "written to $(DEMO): videos/, shards/, run/ (checkpoints, metrics.jsonl, eval/ with features and results)"

# The cores should have nothing else to do; also written to build/bench.json.
bench: install
	$(BIN)/python -m tests.benchmarks.run

# The paper's claims on shards of labelled videos of your own: make evidence SHARDS=... [SIZE=full]
# [EVIDENCE=folder] [AT_ONCE=2].
# About 90 minutes on two cores; started again, it continues. BENCH=build/bench.json adds the speed of extraction.
ifneq ($(filter evidence,$(MAKECMDGOALS)),)
ifndef SHARDS
$(error SHARDS is not set; `make evidence SHARDS=folder` wants the folder that `cmd-extract run` has written)
endif
endif
evidence: install-dev
	$(BIN)/cmd-eval evidence "$(SHARDS)" "$(EVIDENCE)" --size $(SIZE) --at-once $(AT_ONCE) $(if $(BENCH),--bench "$(BENCH)")
	$(BIN)/cmd-eval report "$(EVIDENCE)"

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest --numprocesses 2

# With the oldest libraries that pyproject.toml allows, in a virtual environment of their own.
test-oldest:
	$(MAKE) VENV=.venv-oldest OLDEST='-c .ci/constraints-oldest.txt' install-dev
	.venv-oldest/bin/pytest --numprocesses 2

# Which lines of the three packages the tests run, child processes included; takes longer than the tests alone.
coverage: install-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses 2
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

# On a real Slurm of several virtual nodes and on real dask processes, all on loopback; see tests/cluster/slurm.py.
test-cluster: $(VENV)/.installed-cluster
	@tests/cluster/install-slurm
	$(BIN)/pytest tests/cluster

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
