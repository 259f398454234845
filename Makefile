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

.PHONY: install install-dev demo bench evidence test test-oldest test-cluster coverage lint types docs build clean

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

$(VENV)/.installed-bench: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@$(PIP) -e '.[bench]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-cluster: pyproject.toml .ci/constraints-cpu.txt | $(VENV)/bin/pip
	@$(PIP) -e '.[dev,cluster]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

# $(call step,number,what it does,command): print one line, then run the command with the commands of .venv on the path.
step = @printf '\n[%s/6] %s: %s\n' '$(1)' '$(2)' '$(3)' && PATH="$(abspath $(BIN)):$$PATH" $(3)

demo: install
	$(call step,1,Render 288 synthetic videos,cmd-extract synthesize $(DEMO)/videos)
	$(call step,2,Extract frames and keyframes and motion,cmd-extract run data_manifests/demo.csv $(DEMO)/shards --root $(DEMO)/videos)
	$(call step,3,Train both heads without labels,cmd-train pretrain $(DEMO)/shards $(DEMO)/run --recipe demo)
	$(call step,4,Retrieve with initial weights,cmd-eval retrieval $(DEMO)/run $(DEMO)/shards $(DEMO_RETRIEVAL) --untrained --output $(DEMO)/run/eval/untrained.json) >/dev/null
	$(call step,5,Retrieve with the trained weights,cmd-eval retrieval $(DEMO)/run $(DEMO)/shards $(DEMO_RETRIEVAL) --output $(DEMO)/run/eval/trained.json) >/dev/null
	$(call step,6,Retrieve with the motion grids,cmd-eval baseline $(DEMO)/shards $(DEMO_RETRIEVAL) --output $(DEMO)/run/eval/motion-grids.json) >/dev/null
	@echo
	@$(BIN)/cmd-eval compare $(DEMO)/run/eval/untrained.json $(DEMO)/run/eval/trained.json $(DEMO)/run/eval/motion-grids.json
	@$(BIN)/cmd-eval report $(DEMO)/run 2>/dev/null
	@printf '\nNext:\n'
	@printf '  %s\n' '. $(BIN)/activate' \
	  'cmd-extract preview $(DEMO)/shards --video left-bricks-00   # draw the frames and motion vectors of a video' \
	  'cmd-eval embed $(DEMO)/run $(DEMO)/shards $(DEMO)/features.h5   # then: cmd-eval search VIDEO --embeddings ...' \
	  'cmd-extract manifest VIDEOS manifest.csv   # the same with a folder of your own videos; see README.md'

# Measures speed, memory and growth of cost on an otherwise idle machine; also writes build/bench.json.
bench: $(VENV)/.installed-bench
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

# The API reference and the pages of the repository as a static site: build/site/index.html. Warnings are errors.
docs: install-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint types docs
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
