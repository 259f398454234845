"""A checkpoint and its embeddings, made once per test file, which may add files to the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cmd_eval.checkpoint_runs import QUICK, evaluate, make_run


@pytest.fixture(scope="module")
def run_dir(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("features") / "run", few_shards)


@pytest.fixture(scope="module")
def embeddings(run_dir: Path, few_shards: Path) -> Path:
    path = run_dir.parent / "embeddings.h5"
    result = evaluate("embed", run_dir, few_shards, path, "--clips", 3, *QUICK)
    assert result.exit_code == 0, result.output
    return path
